"""Tokens that the model has no row for."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyrl.config import ConfigError
from pyrl.data.tokenizer import check_vocabulary
from pyrl.types import Prompt

from .conftest import byte_tokenizer

FOLDER = Path("some/model")


def prompt(name: str, *tokens: int) -> Prompt:
    return Prompt(name, tokens, "4", "sums")


def test_a_token_beyond_the_embedding_is_named_with_its_prompt() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "!"})
    prompts = [prompt("sums/0", 3, 9), prompt("sums/1", 7, 256), prompt("sums/2", 256)]
    check_vocabulary(prompts, tokenizer, rows=257, folder=FOLDER)
    with pytest.raises(ConfigError, match=r"^prompt sums/1: token 256 \('<bos>'\) is beyond the 256 rows .*some/model"):
        check_vocabulary(prompts, tokenizer, rows=256, folder=FOLDER)


def test_so_is_a_stop_token_that_could_never_be_drawn() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<new>"})
    with pytest.raises(ConfigError, match=r"^the tokenizer's eos_token: token 257 \('<new>'\) is beyond the 257 rows"):
        check_vocabulary([prompt("sums/0", 3)], tokenizer, rows=257, folder=FOLDER)
