"""Questions of a benchmark: read, deduplicated, with the instruction that the config asks for."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from pyrl.config import ConfigError
from pyrl.data.prompts import Row, load_questions
from pyrl.data.templates import encode
from pyrl.evaluation.config import BenchmarkConfig, EvaluationConfig

INSTRUCTIONS = {
    "keep": "{question}",
    "boxed": "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
    "answer": "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n{question}\n\nRemember to put "
    'your answer on its own line after "Answer:".',
}
"""By `instruction`; `answer` is the wording of the DAPO evaluation files."""


@dataclass(frozen=True, slots=True)
class Question:
    benchmark: str
    id: str
    prompt: str
    """Contents of the messages after rewriting, before the template."""
    token_ids: tuple[int, ...]
    ground_truth: str

    @property
    def prompt_hash(self) -> str:
        """SHA-256 of the token ids, first 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.token_ids).encode()).hexdigest()[:16]


def load_benchmarks(config: EvaluationConfig, tokenizer: PreTrainedTokenizerBase) -> list[Question]:
    """Questions of all chosen benchmarks, in the config's order.

    Raises ConfigError: sets that are not at hand (all are named), a file that is missing, empty or damaged, an id with
    two contents, another number of questions than `expected_rows`, a text to strip that a prompt lacks.
    """
    _check_at_hand(config)
    questions = []
    for name, benchmark in config.chosen.items():
        rows, _ = load_questions(_find(name, benchmark, config.data_dir), benchmark.columns)
        if benchmark.expected_rows not in (None, len(rows)):
            raise ConfigError(
                f"benchmarks.{name}: {benchmark.source} holds {len(rows)} questions, expected_rows is "
                f"{benchmark.expected_rows}: another edition of the set? Its scores would not compare"
            )
        questions += _questions(name, benchmark, rows[: config.max_questions], tokenizer)
    return questions


def _check_at_hand(config: EvaluationConfig) -> None:
    missing = {name: b for name, b in config.chosen.items() if b.source is None}
    if missing:
        named = "; ".join(
            f"{name} ({b.expected_rows or '?'} rows{f', {b.note}' if b.note else ''})" for name, b in missing.items()
        )
        rest = [name for name in config.chosen if name not in missing]
        raise ConfigError(
            f"benchmarks that are not at hand: {named}. Give benchmarks.{next(iter(missing))}.source=FILE for each"
            + (f", or evaluate the others alone: only=[{','.join(rest)}]" if rest else "")
        )


def _find(name: str, benchmark: BenchmarkConfig, data_dir: Path | None) -> Path:
    source = str(benchmark.source)
    if source.startswith("hub:"):
        return _download(name, source.removeprefix("hub:"))
    if Path(source).is_absolute():
        return Path(source)
    folder = data_dir or os.environ.get("PYRL_DATA_DIR")
    if not folder:
        raise ConfigError(
            f"benchmarks.{name}.source {source} is under data_dir, which is not given: set data_dir=FOLDER or "
            "PYRL_DATA_DIR"
        )
    return Path(folder) / source


def _download(name: str, address: str) -> Path:
    from huggingface_hub import hf_hub_download

    parts = re.fullmatch(r"(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<file>.+)", address)
    if parts is None:
        raise ConfigError(
            f"benchmarks.{name}.source hub:{address}: want hub:OWNER/NAME/FILE or hub:OWNER/NAME@REVISION/FILE"
        )
    try:
        return Path(
            hf_hub_download(parts["repository"], parts["file"], repo_type="dataset", revision=parts["revision"])
        )
    except (OSError, ValueError) as error:  # its HTTP errors are OSErrors
        raise ConfigError(f"benchmarks.{name}.source hub:{address} could not be fetched: {error}") from error


def _questions(
    name: str, benchmark: BenchmarkConfig, rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> list[Question]:
    messages = [_rewritten(name, benchmark, row) for row in rows]
    token_ids = encode(messages, benchmark.template, tokenizer)
    return [
        Question(name, row.id, "\n".join(m["content"] for m in said), ids, row.ground_truth)
        for row, said, ids in zip(rows, messages, token_ids, strict=True)
    ]


def _rewritten(name: str, benchmark: BenchmarkConfig, row: Row) -> list[dict[str, str]]:
    """The row's messages; the last one is stripped and gets the instruction."""
    *before, last = row.messages
    text = last["content"]
    for part in benchmark.strip:
        if part not in text:
            raise ConfigError(f"{row.where}: benchmarks.{name}.strip: the prompt does not hold {part!r}")
        text = text.replace(part, "")
    if benchmark.strip or benchmark.instruction != "keep":
        text = text.strip()
    return [*before, {**last, "content": INSTRUCTIONS[benchmark.instruction].format(question=text)}]
