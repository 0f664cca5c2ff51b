"""Held-out questions of run folders in pairs, against the same numbers by hand and by scipy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pyrl.evaluation.held_out import compare_held_out, pass_at_k_curve
from pyrl.telemetry.jsonl import RecordFileError

SAMPLES = 4


def write(
    folder: Path, right_by_step: dict[int, list[int]], unjudged: dict[tuple[int, int], int] | None = None
) -> Path:
    """`unjudged`: (step, question) -> samples."""
    folder.mkdir()
    failed = unjudged or {}
    rows = [
        {"step": step, "prompt_id": f"q/{i}", "samples": SAMPLES, "right": n, "unjudged": failed.get((step, i), 0)}
        for step, counts in right_by_step.items()
        for i, n in enumerate(counts)
    ]
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_runs_are_compared_with_their_start_and_with_the_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    start = rng.integers(0, 2, 40).tolist()
    ends = {name: rng.integers(low, 5, 40).tolist() for name, low in (("grpo", 1), ("kl_cov", 2))}
    runs = {name: write(tmp_path / name, {0: start, 5: start, 9: end}) for name, end in ends.items()}
    found = compare_held_out(runs)
    assert [each.label for each in found] == ["grpo, step 0 -> 9", "kl_cov, step 0 -> 9", "grpo -> kl_cov, step 9"]
    pairs = [(start, ends["grpo"]), (start, ends["kl_cov"]), (ends["grpo"], ends["kl_cov"])]
    for each, (first, second) in zip(found, pairs, strict=True):
        first, second = np.array(first) / SAMPLES, np.array(second) / SAMPLES
        assert (each.first, each.second) == pytest.approx((first.mean(), second.mean()))
        assert each.paired.difference == pytest.approx((second - first).mean())
        reference = stats.permutation_test((second - first,), np.mean, permutation_type="samples", rng=1)
        assert each.paired.p == pytest.approx(reference.pvalue, abs=0.02)


def test_questions_without_a_verdict_leave_the_pair(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", {0: [0, 1, 4], 3: [0, 3, 4]}, {(3, 0): 4, (3, 1): 1})
    (found,) = compare_held_out({"run": folder})
    assert found.paired.questions == 2
    assert (found.first, found.second) == pytest.approx(((1 / 4 + 1) / 2, (3 / 3 + 1) / 2))


def test_runs_that_have_nothing_to_compare_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    one_question = write(tmp_path / "one", {0: [1], 2: [2]})
    other_end = write(tmp_path / "two", {0: [1, 2], 3: [2, 2]})
    found = compare_held_out({"one": one_question, "two": other_end, "none": tmp_path / "none"})
    assert [each.label for each in found] == ["two, step 0 -> 3"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", {0: [1, 2]})
    (folder / "validation.jsonl").write_text("{broken}\n" * 2)
    with pytest.raises(RecordFileError, match=r"validation\.jsonl"):
        compare_held_out({"run": folder})


def test_pass_at_k_is_of_the_last_step_and_of_what_every_question_has(tmp_path: Path) -> None:
    """1 and 4 right of 4; then a third sample is unjudged, which leaves k up to 2."""
    folder = write(tmp_path / "run", {0: [0, 0], 7: [1, 4]})
    assert pass_at_k_curve(folder) == pytest.approx({1: 0.625, 2: 0.75, 4: 1.0})
    fewer = write(tmp_path / "fewer", {7: [1, 3]}, {(7, 1): 1})
    assert pass_at_k_curve(fewer) == pytest.approx({1: 0.625, 2: 0.75})
    none = write(tmp_path / "none", {7: [1, 0]}, {(7, 1): 4})
    assert pass_at_k_curve(none) == pass_at_k_curve(tmp_path) == {}
