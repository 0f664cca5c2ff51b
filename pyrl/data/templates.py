"""What the model reads: a list of chat messages as text, and that text as token ids."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from pyrl.config import ConfigError

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
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


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
    texts = [TEMPLATES[template](messages, tokenizer) for messages in conversations]
    return [tuple(ids) for ids in tokenizer(texts, add_special_tokens=template != "chat")["input_ids"]]
