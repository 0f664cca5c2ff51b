"""The tokenizer of a model folder, and the tokens at which its responses end."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pyrl.config import ConfigError
from pyrl.types import Prompt


def load_tokenizer(folder: Path, *, field: str = "model.path") -> PreTrainedTokenizerBase:
    """The model's tokenizer; ConfigError, naming the setting `field`, where the folder, the tokenizer or its stop token
    is missing."""
    if not folder.is_dir():
        raise ConfigError(
            f"{field} {folder} is not a folder: give a Hugging Face folder (`pyrl convert` makes one from GGUF or .bin)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{field} {folder} holds no tokenizer that can be read: {error}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes an empty one where files are missing
        raise ConfigError(f"{field} {folder} holds no tokenizer: copy the tokenizer files of the model into it")
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{field} {folder}: the tokenizer has no eos_token, so a response could never end")
    return tokenizer


def check_vocabulary(
    prompts: Iterable[Prompt], tokenizer: PreTrainedTokenizerBase, *, rows: int, folder: Path
) -> None:
    """Raises ConfigError for a token of a prompt, or the tokenizer's EOS, beyond the `rows` of the embedding."""
    used = {tokenizer.eos_token_id: "the tokenizer's eos_token"}
    for prompt in prompts:
        for token in prompt.token_ids:
            used.setdefault(token, f"prompt {prompt.id}")
    highest = max(used)
    if highest >= rows:
        raise ConfigError(
            f"{used[highest]}: token {highest} ({tokenizer.convert_ids_to_tokens(highest)!r}) is beyond the {rows} "
            f"rows of the embedding in model.path {folder}: its tokenizer is another model's, or got more tokens later"
        )


def stop_token_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokenizer's EOS token, then the others of the folder's `generation_config.json`: a chat model may end a turn
    with one and a text with another. Raises ConfigError for a file that is damaged."""
    path = folder / "generation_config.json"
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: not a readable JSON object ({error}); restore it or delete it") from error
    ids = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return tuple(dict.fromkeys(i for i in ids if i is not None))
