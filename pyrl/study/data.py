"""The numbers behind a study's report as CSV, small enough to be kept beside it: curves and held-out questions."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyrl.analysis.records import load_run
from pyrl.evaluation.held_out import last_questions
from pyrl.study.config import PlannedRun
from pyrl.telemetry.names import DIFFICULTY_BINS

CURVES, HELD_OUT = "curves", "held_out"
DIGITS = 4
CURVE = ("step", "reward_mean", "entropy", "validation_reward_mean", "selected_tokens", "covariance_mean")
CAUSE = (
    "entropy_change_measured", "cov_response_logp_adv", "cov_response_logp_pi_adv", "cov_token_logp_adv",
    "cov_token_logp_pi_adv",
)  # fmt: skip
"""Of the steps whose entropy change was measured. Under the names of `metrics.jsonl`, which `pyrl analyze` reads."""
CAUSE_BY_DIFFICULTY = ("entropy_change_by_difficulty", "cov_token_logp_adv_by_difficulty")
"""A column for each accuracy: `NAME ACCURACY`."""


def write_data(done: Iterable[PlannedRun], folder: Path) -> None:
    """`curves/ARM-seed_N.csv` of every run, and of every seed `held_out/seed_N.csv`: for each question of the last
    validation how many samples were judged and right in each arm, and the grader's reasons. Replaces both folders.

    Numbers have four digits; a cell is empty where a value is not defined.
    """
    questions: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in (CURVES, HELD_OUT):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    for run in done:
        arm, seed = run.folder.parts[-2:]
        _write(folder / CURVES / f"{arm}-{seed}.csv", map(_curve_row, load_run(run.folder).rows))
        questions.setdefault(seed, {})[arm] = last_questions(run.folder)
    for seed, arms in questions.items():
        if rows := _question_rows(arms):
            _write(folder / HELD_OUT / f"{seed}.csv", rows)


def _curve_row(row: dict[str, Any]) -> dict[str, Any]:
    measured = row if row.get("entropy_change_measured") is not None else {}
    found = {name: row.get(name) for name in CURVE} | {name: measured.get(name) for name in CAUSE}
    for name in CAUSE_BY_DIFFICULTY:
        of_bin = measured.get(name) or {}
        found |= {f"{name} {accuracy}": of_bin.get(accuracy) for accuracy in DIFFICULTY_BINS}
    return found


def _question_rows(arms: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row a question of any arm; the arms of one seed share questions where they share a start."""
    rows: dict[str, dict[str, Any]] = {}
    for arm, questions in arms.items():
        for question in questions:
            reasons = " ".join(f"{reason}:{count}" for reason, count in question.get("reasons", {}).items())
            row = rows.setdefault(question["prompt_id"], {name: question[name] for name in ("prompt_id", "source")})
            row |= {
                f"{arm} right": question["right"],
                f"{arm} judged": question["samples"] - question["unjudged"],
                f"{arm} reasons": reasons,
            }
    return list(rows.values())


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    rows = list(rows)
    columns = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)
