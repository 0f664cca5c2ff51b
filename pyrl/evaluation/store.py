"""The folder of an evaluation: settings, questions, samples, scores. A killed evaluation goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from pyrl.config import ConfigError
from pyrl.evaluation.benchmarks import Question
from pyrl.evaluation.config import EvaluationConfig
from pyrl.telemetry.jsonl import JsonlFile, RecordFileError, read_jsonl

SETTINGS, IDENTITY, QUESTIONS, SAMPLES, SCORES = (
    "evaluation.yaml", "identity.json", "questions.json", "samples.jsonl", "scores.json"
)  # fmt: skip

Sample = dict[str, Any]
"""A row of samples.jsonl: step (0), benchmark, question, sample, prompt_hash, seed, text, tokens, finish_reason, verdict,
reason, extracted, grader, grader_version; the last five are null until it is graded."""
Key = tuple[str, str, int]
"""(benchmark, question, sample)"""


class EvaluationError(RuntimeError):
    """An evaluation could not be finished; what was finished is kept."""


def write_whole(path: Path, text: str) -> None:
    """Write or replace a file, all or nothing. EvaluationError when the disk refuses."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise EvaluationError(f"{path} could not be written ({error.strerror}); what was there is kept: make room and "
                              "call the same command again") from error  # fmt: skip


def open_folder(folder: Path, config: EvaluationConfig, questions: list[Question]) -> None:
    """Make the folder, or check that it is of the same evaluation. ConfigError naming what differs."""
    # as JSON reads it back
    identity = json.loads(json.dumps({"settings": config.identity(), "questions": _described(questions)}))
    if (folder / IDENTITY).is_file():
        before = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
        if before != identity:
            changed = [k for k in identity["settings"] if before["settings"].get(k) != identity["settings"][k]]
            raise ConfigError(
                f"{folder} holds an evaluation with other {', '.join(changed) or 'questions'}: give another --folder, or "
                "restore the settings to go on with it"
            )
    elif folder.exists() and any(folder.glob(SAMPLES)):
        raise ConfigError(f"{folder} holds {SAMPLES} of something else: give another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    full = [d | {"prompt": q.prompt, "ground_truth": q.ground_truth} for d, q in zip(_described(questions), questions, strict=True)]
    write_whole(folder / QUESTIONS, json.dumps(full, ensure_ascii=False, indent=1))
    write_whole(folder / SETTINGS, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    write_whole(folder / IDENTITY, json.dumps(identity))


def _described(questions: list[Question]) -> list[dict[str, str]]:
    return [{"benchmark": q.benchmark, "id": q.id, "prompt_hash": q.prompt_hash} for q in questions]


def read_questions(folder: Path) -> list[dict[str, str]]:
    """benchmark, id, prompt_hash, prompt, ground_truth of each question. ConfigError where it is no evaluation."""
    if not (folder / QUESTIONS).is_file():
        raise ConfigError(f"{folder} holds no {QUESTIONS}: it is not the folder of an evaluation")
    return json.loads((folder / QUESTIONS).read_text(encoding="utf-8"))


def read_samples(folder: Path) -> dict[Key, Sample]:
    """Finished samples. ConfigError for a damaged file."""
    path = folder / SAMPLES
    try:
        return {(r["benchmark"], r["question"], r["sample"]): r for r in (read_jsonl(path) if path.is_file() else ())}
    except RecordFileError as error:
        raise ConfigError(str(error)) from error


class SampleFile:
    """Appends samples as they finish."""

    def __init__(self, folder: Path) -> None:
        self._file = JsonlFile(folder / SAMPLES)

    def append(self, sample: Sample) -> None:
        """EvaluationError when the disk refuses it; earlier samples stay."""
        try:
            self._file.append([sample])
        except OSError as error:
            raise EvaluationError(f"{error}; all finished samples are kept: make room and call the same command again") from error

    def close(self) -> None:
        self._file.close()


def replace_samples(folder: Path, samples: list[Sample]) -> None:
    """All samples anew, graded."""
    write_whole(folder / SAMPLES, "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples))
