"""The folder of an evaluation: settings, questions, samples, scores. A killed evaluation goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from pyrl.config import ConfigError
from pyrl.evaluation.benchmarks import Question
from pyrl.evaluation.config import EvaluationConfig
from pyrl.evaluation.errors import EvaluationError
from pyrl.telemetry.jsonl import JsonlFile, RecordFileError, read_jsonl

SETTINGS, IDENTITY, QUESTIONS = "evaluation.yaml", "identity.json", "questions.json"
SAMPLES, SCORES, LOCK = "samples.jsonl", "scores.json", "run.lock"

Sample = dict[str, Any]
"""A row of samples.jsonl: step, benchmark, question, sample, prompt_hash, seed, text, tokens, finish_reason, verdict,
reason, extracted, grader, grader_version, vote; the last six are null until it is graded. `step`: of the training run
whose policy answered, else 0. `vote`: of a wrong answer, `pyrl.reward.forms.Form` as a list; else null."""
Key = tuple[str, str, int]
"""(benchmark, question, sample)"""
FINGERPRINT_BLOCKS, BLOCK_BYTES = 64, 1 << 16


def write_whole(path: Path, text: str) -> None:
    """Write or replace a file, all or nothing. EvaluationError when the disk refuses."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise EvaluationError(
            f"{path} could not be written ({error.strerror}); what was there is kept: make room and call the same "
            "command again"
        ) from error


def weights_fingerprint(model: Path) -> str:
    """Of the sizes and of up to 64 blocks of 64 KiB of each weight file: another checkpoint under the same path shows,
    and a model of any size takes no time to read. Raises ConfigError where there are no weights."""
    files = sorted(model.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"model {model} holds no .safetensors file: give a Hugging Face folder")
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for block in range(FINGERPRINT_BLOCKS):
                file.seek(block * size // FINGERPRINT_BLOCKS)
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()[:16]


def open_folder(folder: Path, config: EvaluationConfig, questions: list[Question], *, weights: str) -> None:
    """Make the folder, or check that it is of the same evaluation; `weights` is their fingerprint.

    Raises ConfigError naming what differs, before anything is written.
    """
    settings = config.identity() | {"weights": weights}
    identity = {"settings": settings, "questions": [_described(question) for question in questions]}
    identity = json.loads(json.dumps(identity))  # as it is read back
    if (folder / IDENTITY).is_file():
        _check_same(folder, json.loads((folder / IDENTITY).read_text(encoding="utf-8")), identity)
    elif folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
        raise ConfigError(f"{folder} holds something else than an evaluation: give another --folder")
    write_whole(folder / IDENTITY, json.dumps(identity))
    contents = [_described(q) | {"prompt": q.prompt, "ground_truth": q.ground_truth} for q in questions]
    write_whole(folder / QUESTIONS, json.dumps(contents, ensure_ascii=False, indent=1))
    write_settings(folder, config)


def write_settings(folder: Path, config: EvaluationConfig) -> None:
    write_whole(folder / SETTINGS, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    if before == now:
        return
    changed = [key for key, value in now["settings"].items() if before["settings"].get(key) != value]
    raise ConfigError(
        f"{folder} holds an evaluation with other {', '.join(changed) or 'questions'}: give another --folder, or "
        "restore what changed to go on with it"
    )


def _described(question: Question) -> dict[str, str]:
    truth = hashlib.sha256(question.ground_truth.encode()).hexdigest()[:16]
    return {
        "benchmark": question.benchmark,
        "id": question.id,
        "prompt_hash": question.prompt_hash,
        "ground_truth_hash": truth,
    }


def read_questions(folder: Path) -> list[dict[str, str]]:
    """benchmark, id, prompt_hash, prompt, ground_truth of each question. ConfigError where it is no evaluation."""
    path = folder / QUESTIONS
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} holds no {QUESTIONS}: it is not the folder of an evaluation") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); restore the file") from error


def read_samples(folder: Path) -> dict[Key, Sample]:
    """Finished samples; none where there is no file. ConfigError for a damaged one."""
    path = folder / SAMPLES
    try:
        return {(r["benchmark"], r["question"], r["sample"]): r for r in (read_jsonl(path) if path.is_file() else ())}
    except (RecordFileError, KeyError) as error:
        raise ConfigError(f"{path}: {error}") from error


class SampleFile:
    """Appends samples as they finish."""

    def __init__(self, folder: Path) -> None:
        """Raises EvaluationError where the file cannot be opened."""
        try:
            self._file = JsonlFile(folder / SAMPLES)
        except OSError as error:
            raise EvaluationError(f"{folder / SAMPLES} cannot be written: {error}") from error

    def append(self, sample: Sample) -> None:
        """EvaluationError when the disk refuses it; earlier samples stay."""
        try:
            self._file.append([sample])
        except OSError as error:
            raise EvaluationError(
                f"{error}; all finished samples are kept: make room and call the same command again"
            ) from error

    def close(self) -> None:
        self._file.close()


def replace_samples(folder: Path, samples: Iterable[Sample]) -> None:
    """All samples anew, graded. EvaluationError, with the file as it was, when the disk refuses."""
    write_whole(folder / SAMPLES, "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples))
