"""What the model reads: a list of chat messages as text, and that text as token ids."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from pyrl.config import ConfigError

logger = logging.getLogger(__name__)

Message = dict[str, str]
"""{"role": ..., "content": ...}"""

R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> "
    "reasoning process here </think> <answer> answer here </answer>. User: {question}. Assistant: Let me solve this "
    "step by step.\n<think>"
)
"""DeepSeek-R1-Zero's template (arXiv 2501.12948, table 1) with the opening that the Entropy Mechanism's runs add."""


def chat(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template, up to where the assistant's turn begins."""
    if not tokenizer.chat_template:
        raise ConfigError(
            f"data.template 'chat': the tokenizer of {tokenizer.name_or_path or 'the model'} has no chat template; use "
            "r1_zero or plain, or add chat_template.jinja to the model folder"
        )
    return _render(messages, tokenizer, generation_prompt=True)


def _render(messages: list[Message], tokenizer: PreTrainedTokenizerBase, *, generation_prompt: bool) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    except (TemplateError, TypeError, ValueError) as error:
        raise ConfigError(
            f"data.template 'chat': the chat template of {tokenizer.name_or_path}{_line_of(error)} fails for "
            f"{messages!r:.120}: {str(error).rstrip('.')}. Correct it there, or use r1_zero or plain"
        ) from error


def _line_of(error: Exception) -> str:
    """`, line 3`, of the template; empty where the error does not say."""
    if isinstance(error, TemplateSyntaxError):
        return f", line {error.lineno},"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return f", line {lines[-1]}," if lines else ""


def warn_without_generation_prompt(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> None:
    """Say so where the template writes nothing at which the assistant's turn would begin."""
    if _render(messages, tokenizer, generation_prompt=True) == _render(messages, tokenizer, generation_prompt=False):
        logger.warning(
            "the chat template of %s has no generation prompt: the model goes on with the user's turn in place of an "
            "answer of its own. Add `{%% if add_generation_prompt %%}...{%% endif %%}` to it, or use r1_zero or plain",
            tokenizer.name_or_path,
        )


def r1_zero(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """The R1-Zero conversation text around the messages' contents, for base models."""
    return R1_ZERO.replace("{question}", plain(messages, tokenizer))


def plain(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """The contents of the messages, one after another, with nothing added."""
    return "".join(message["content"] for message in messages)


TEMPLATES: dict[str, Callable[[list[Message], PreTrainedTokenizerBase], str]] = {
    "chat": chat,
    "r1_zero": r1_zero,
    "plain": plain,
}
"""By `data.template`."""


def encode(
    conversations: list[list[Message]], template: str, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, ...]]:
    """Token ids of each conversation under `template`, in one tokenizer call.

    A chat template writes its own special tokens; to the other templates the tokenizer adds those it puts before any
    text (a BOS for Llama, none for Qwen2).
    """
    if not conversations:
        return []
    if template == "chat":
        warn_without_generation_prompt(conversations[0], tokenizer)
    texts = [TEMPLATES[template](messages, tokenizer) for messages in conversations]
    return [tuple(ids) for ids in tokenizer(texts, add_special_tokens=template != "chat")["input_ids"]]
