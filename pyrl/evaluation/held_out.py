"""Did training help, and did one method help more? Held-out questions of run folders, compared in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyrl.evaluation.metrics import pass_at_k_of_counts
from pyrl.evaluation.statistics import Comparison, compare_paired
from pyrl.telemetry.jsonl import read_jsonl

VALIDATION = "validation.jsonl"
HEADINGS = ("held out", "avg@k", "difference [95% interval]", "p", "questions", "verdict on the second")
"""Of `HeldOutComparison.cells`. The interval is by question, p of a two-sided sign-flip permutation test."""
POLICIES_NOT_METHODS = (
    "This compares two policies, not two methods: another seed of a method gives another policy. `pyrl study` compares "
    "methods over seeds."
)
"""Stands beside the comparisons of single runs."""


@dataclass(frozen=True, slots=True)
class HeldOutComparison:
    """avg@k of the same held-out questions under two policies."""

    label: str
    """`grpo, step 0 -> 260`, or `grpo -> kl_cov, step 260`."""
    first: float
    second: float
    """Means over the questions that have a verdict under both policies, fractions."""
    paired: Comparison

    def cells(self) -> tuple[str, ...]:
        """By `HEADINGS`."""
        pair = self.paired
        return (
            self.label,
            f"{self.first:.3f} -> {self.second:.3f}",
            f"{pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]",
            f"{pair.p:.2g}",
            str(pair.questions),
            pair.verdict,
        )


def compare_held_out(runs: Mapping[str, Path | str]) -> list[HeldOutComparison]:
    """Each run's last validation against its first; then each other run's last against the first run's last.

    `runs`: label -> run folder with `validation.jsonl`. A pair of which fewer than 2 questions were judged under both
    policies is left out, and so is a run without two validations. Raises RecordFileError for a damaged file.
    """
    scores = {label: _scores(Path(folder) / VALIDATION) for label, folder in runs.items()}
    found = []
    for label, by_step in scores.items():
        if len(by_step) > 1:
            first, last = min(by_step), max(by_step)
            found.append(_compare(f"{label}, step {first} -> {last}", by_step[first], by_step[last]))
    (baseline, of_baseline), *others = scores.items()
    for label, by_step in others:
        if of_baseline and by_step and max(by_step) == (last := max(of_baseline)) > 0:
            found.append(_compare(f"{baseline} -> {label}, step {last}", of_baseline[last], by_step[last]))
    return [each for each in found if each is not None]


def last_questions(run_folder: Path | str) -> list[dict[str, Any]]:
    """Rows of the last validation, one a question, in their order; none where nothing was validated."""
    path = Path(run_folder) / VALIDATION
    rows = list(read_jsonl(path)) if path.is_file() else []
    return [row for row in rows if row["step"] == rows[-1]["step"]]


def pass_at_k_curve(run_folder: Path | str) -> dict[int, float]:
    """Unbiased pass@k of the last validation, mean over its questions: k = 1, 2, 4, ... up to the samples that were
    judged of every question. Empty where nothing was validated, or a question has no verdict."""
    last = last_questions(run_folder)
    right, judged = [row["right"] for row in last], [row["samples"] - row["unjudged"] for row in last]
    curve: dict[int, float] = {}
    k = 1
    while k <= min(judged, default=0):
        curve[k] = float(pass_at_k_of_counts(right, judged, k).mean())
        k *= 2
    return curve


def _scores(path: Path) -> dict[int, dict[str, float]]:
    """Step -> prompt -> share of its judged samples that are right."""
    scores: dict[int, dict[str, float]] = {}
    for row in read_jsonl(path) if path.is_file() else ():
        judged = row["samples"] - row["unjudged"]
        of_step = scores.setdefault(row["step"], {})
        if judged:
            of_step[row["prompt_id"]] = row["right"] / judged
    return scores


def _compare(label: str, first: dict[str, float], second: dict[str, float]) -> HeldOutComparison | None:
    shared = sorted(first.keys() & second.keys())
    if len(shared) < 2:
        return None
    pairs = [(first[name], second[name]) for name in shared]
    one, other = ([pair[i] for pair in pairs] for i in (0, 1))
    return HeldOutComparison(label, sum(one) / len(one), sum(other) / len(other), compare_paired(one, other))
