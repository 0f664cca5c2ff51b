"""Prompt files: parquet or JSONL, one question a row, in the schema that verifiable-reward RL shares, or in plain
columns that `data.columns` names.

data_source (str), prompt (list of {role, content}), reward_model {ground_truth (str), ...}, extra_info {index, ...}
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from pyrl.config import ColumnsConfig, ConfigError, DataConfig
from pyrl.data.extractors import EXTRACTORS
from pyrl.data.templates import Message, encode
from pyrl.types import Prompt

logger = logging.getLogger(__name__)

COLUMNS = ("data_source", "prompt", "reward_model", "extra_info")
WHERE_TO_GET_DATA = (
    "public sets in this schema: BytedTsinghua-SIA/DAPO-Math-17k and PRIME-RL/Eurus-2-RL-Data on the Hugging Face hub; "
    "for plain columns name them in `columns`"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One valid row of a prompt file."""

    where: str
    """File and row or line, for messages."""
    id: str
    source: str
    messages: list[Message]
    ground_truth: str

    @property
    def content(self) -> tuple[tuple[tuple[str, str], ...], str]:
        """What makes two rows the same question."""
        return tuple((m["role"], m["content"]) for m in self.messages), self.ground_truth


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The questions of one file, in file order, and what was left out."""

    prompts: list[Prompt]
    rows: int
    duplicates: int
    """Rows whose prompt and ground truth an earlier row has."""
    overlong: int
    """Questions dropped because they exceed `data.max_prompt_tokens`."""


def load_prompts(config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, validation: bool = False) -> list[Prompt]:
    """The questions of `data.path`, or of `data.validation_path`, templated and tokenized; what was left out is logged.

    Raises ConfigError as `load_prompt_set` does, and when `validation` is asked for and no path is set.
    """
    path = config.validation_path if validation else config.path
    if path is None:
        raise ConfigError("data.validation_path: required here but not given")
    found = load_prompt_set(config, tokenizer, path=path)
    logger.info(
        "%s: %d questions from %d rows (%d duplicates, %d over %d tokens dropped)",
        path, len(found.prompts), found.rows, found.duplicates, found.overlong, config.max_prompt_tokens,
    )  # fmt: skip
    return found.prompts


def fingerprint(prompts: Iterable[Prompt]) -> str:
    """SHA-256 of what a run reads of the prompts, in their order: id, token ids and ground truth."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.id, prompt.token_ids, prompt.ground_truth]).encode() + b"\n")
    return digest.hexdigest()


def load_prompt_set(config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, path: Path) -> PromptSet:
    """Read, check, deduplicate, template and tokenize.

    A question's id is `<data_source>/<extra_info.index>`, or `<data_source>/row<number>` without an index; with
    `data.columns`, the file's name without suffix stands for the source, and `columns.id` for the index. Raises
    ConfigError naming file, row and field: no file, a format that is not known, a corrupt row, one id with two
    contents, a prompt over `data.max_prompt_tokens` (with `overlong_prompts: error`), or nothing left.
    """
    rows, total = _distinct(_read_rows(path, config.columns))
    token_ids = encode([row.messages for row in rows], config.template, tokenizer)
    prompts, overlong = [], 0
    for row, ids in zip(rows, token_ids, strict=True):
        if len(ids) > config.max_prompt_tokens:
            if config.overlong_prompts == "error":
                raise ConfigError(
                    f"{row.where}: prompt has {len(ids)} tokens, data.max_prompt_tokens is {config.max_prompt_tokens}; "
                    "raise it, or set data.overlong_prompts=drop"
                )
            overlong += 1
            continue
        if not ids:
            raise ConfigError(f"{row.where}: field prompt gives no token under data.template {config.template!r}")
        prompts.append(Prompt(row.id, ids, row.ground_truth, row.source))
    if not prompts:
        raise ConfigError(f"{path}: no prompt left of {total} rows ({overlong} over {config.max_prompt_tokens} tokens)")
    return PromptSet(prompts, rows=total, duplicates=total - len(rows), overlong=overlong)


def load_questions(path: Path, columns: ColumnsConfig | None = None) -> tuple[list[Row], int]:
    """The first row of every question of a file, in file order, and the number of rows; not templated.

    Rows with equal prompt and ground truth are one question. Raises ConfigError as `load_prompt_set`.
    """
    rows, total = _distinct(_read_rows(path, columns))
    if not rows:
        raise ConfigError(f"{path}: holds no row; {WHERE_TO_GET_DATA}")
    return rows, total


def _distinct(rows: Iterator[Row]) -> tuple[list[Row], int]:
    """The first row of every question, and the number of rows."""
    by_id: dict[str, Row] = {}
    by_content: dict[Any, Row] = {}
    total = 0
    for row in rows:
        total += 1
        first = by_content.setdefault(row.content, row)
        namesake = by_id.setdefault(row.id, first)
        if namesake is not first:
            raise ConfigError(
                f"{row.where}: id {row.id!r} was already given to another question at {namesake.where}; make "
                "extra_info.index, or the column of columns.id, unique within its source"
            )
    return list(by_content.values()), total


def _read_rows(path: Path, columns: ColumnsConfig | None) -> Iterator[Row]:
    if not path.is_file():
        raise ConfigError(f"prompt file {path} does not exist; {WHERE_TO_GET_DATA}")
    readers = {".parquet": _read_parquet, ".jsonl": _read_jsonl}
    if path.suffix not in readers:
        raise ConfigError(f"prompt file {path}: suffix {path.suffix!r} is not one of {', '.join(readers)}")
    for number, where, raw in readers[path.suffix](path, columns):
        if not isinstance(raw, dict):
            raise ConfigError(f"{where}: wanted an object with {', '.join(COLUMNS)}, got {type(raw).__name__}")
        yield _parse(raw, number, where) if columns is None else _parse_plain(raw, number, where, columns, path.stem)


def _read_parquet(path: Path, columns: ColumnsConfig | None) -> Iterator[tuple[int, str, Any]]:
    required = COLUMNS[:3] if columns is None else columns.names
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            present = set(file.schema_arrow.names)
            for column in required:
                if column not in present:
                    raise ConfigError(
                        f"{path}, row 0: column {column!r} is missing; there are {', '.join(sorted(present))}; "
                        + WHERE_TO_GET_DATA
                    )
            wanted = COLUMNS if columns is None else required
            for batch in file.iter_batches(columns=[c for c in wanted if c in present]):
                for raw in batch.to_pylist():
                    yield row, f"{path}, row {row}", raw
                    row += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}, after {row} rows: not readable as parquet: {error}") from error


def _read_jsonl(path: Path, _: ColumnsConfig | None) -> Iterator[tuple[int, str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                raw = json.loads(line.decode())
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ConfigError(f"{where}: not valid JSON: {error}") from error
            yield number, where, raw


def _parse_plain(raw: dict[str, Any], number: int, where: str, columns: ColumnsConfig, source: str) -> Row:
    index = f"row{number}" if columns.id is None else _id(raw.get(columns.id), columns.id, where)
    text = _text(raw.get(columns.prompt), columns.prompt, where)
    truth = _answer(raw.get(columns.ground_truth), columns.ground_truth, where)
    if columns.extractor is not None:
        truth = _extracted(truth, columns, where)
    return Row(where, f"{source}/{index}", source, [{"role": "user", "content": text}], truth)


def _extracted(text: str, columns: ColumnsConfig, where: str) -> str:
    answer = EXTRACTORS[columns.extractor](text)
    if answer is None:
        raise ConfigError(
            f"{where}: field {columns.ground_truth}: data.columns.extractor {columns.extractor} finds no answer in "
            f"{text[-80:]!r}: correct the row, or choose another extractor"
        )
    return answer


def _answer(value: Any, field: str, where: str) -> str:
    """142.0, as some files hold it, is 142."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(int(value) if value == int(value) else value)
    return _text(value, field, where)


def _parse(raw: dict[str, Any], number: int, where: str) -> Row:
    source = _text(raw.get("data_source"), "data_source", where)
    reward_model = raw.get("reward_model")
    if not isinstance(reward_model, dict):
        raise ConfigError(f"{where}: field reward_model: wanted an object with ground_truth, got {reward_model!r}")
    return Row(
        where=where,
        id=f"{source}/{_index(raw.get('extra_info'), number, where)}",
        source=source,
        messages=_messages(raw.get("prompt"), where),
        ground_truth=_answer(reward_model.get("ground_truth"), "reward_model.ground_truth", where),
    )


def _messages(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where}: field prompt: wanted a non-empty list of {{role, content}}, got {value!r:.80}")
    for i, message in enumerate(value):
        if not isinstance(message, dict):
            raise ConfigError(f"{where}: field prompt[{i}]: wanted {{role, content}}, got {message!r:.80}")
        for key in ("role", "content"):
            _text(message.get(key), f"prompt[{i}].{key}", where)
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _text(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: field {field}: wanted a non-empty string, got {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{where}: field {field}: character {error.start} is the lone surrogate {value[error.start]!a}, half of a "
            "character, which no tokenizer takes: repair or remove the row"
        ) from None
    return value


def _index(extra_info: Any, number: int, where: str) -> str:
    if extra_info is not None and not isinstance(extra_info, dict):
        raise ConfigError(f"{where}: field extra_info: wanted an object, got {extra_info!r:.80}")
    index = (extra_info or {}).get("index")
    if index is None:
        return f"row{number}"
    return _id(index, "extra_info.index", where)


def _id(value: Any, field: str, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ConfigError(f"{where}: field {field}: wanted a number or a string, got {value!r:.80}")
    return str(value)
