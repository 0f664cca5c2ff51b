"""scores.json against scipy, brute force over draws, and numbers by hand."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pyrl.config import ConfigError
from pyrl.evaluation import published
from pyrl.evaluation.metrics import clustered_interval
from pyrl.evaluation.scores import compare_folders, means, score_benchmark, with_interval
from pyrl.evaluation.statistics import Comparison
from pyrl.evaluation.tables import comparison_table, score_table

SAMPLES = 5
RIGHT, WRONG, UNJUDGED = "right", "wrong", "unjudged"


def sample(question: int, number: int, verdict: str, extracted: str | None = "1", **changes: Any) -> dict[str, Any]:
    return {
        "step": 0, "benchmark": "set", "question": f"q{question}", "sample": number, "verdict": verdict,
        "extracted": extracted, "text": "so 1", "tokens": 10, "finish_reason": "stop", "grader": "math",
        "grader_version": "1", "vote": None if verdict != WRONG or extracted is None else [extracted, "", ""],
    } | changes  # fmt: skip


def drawn(questions: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    rng = np.random.default_rng(seed)
    return {
        f"q{q}": [
            sample(q, n, RIGHT if rng.random() < (q + 1) / (questions + 1) else WRONG, str(rng.integers(0, 3)))
            for n in range(SAMPLES)
        ]
        for q in range(questions)
    }


def matrix(questions: dict[str, list[dict[str, Any]]]) -> np.ndarray:
    return np.array([[s["verdict"] == RIGHT for s in own] for own in questions.values()])


def test_statistics_agree_with_scipy_and_with_every_draw() -> None:
    questions = drawn(9, seed=0)
    found, right = score_benchmark(questions), matrix(questions)
    answers = [[s["extracted"] for s in own] for own in questions.values()]
    assert list(found["pass_at_k"]) == ["1", "2", "4", "5"] == list(found["maj_at_k"])
    for k in (1, 2, 4, 5):
        picks = [list(pick) for pick in itertools.combinations(range(SAMPLES), k)]
        passed = np.array([np.mean([row[pick].any() for pick in picks]) for row in right])
        pairs = zip(answers, right, strict=True)
        major = np.array([np.mean([vote(own, row, pick) for pick in picks]) for own, row in pairs])
        assert found["pass_at_k"][str(k)]["mean"] == pytest.approx(passed.mean())
        assert found["maj_at_k"][str(k)]["mean"] == pytest.approx(major.mean())
    for said in (found["avg_at_k"], found["pass_at_k"]["1"]):
        low, high = clustered_interval(right)
        assert (said["mean"], said["low"], said["high"]) == pytest.approx((right.mean(), low, high))
    assert (found["questions"], found["rows"], found["samples"], found["headline_k"]) == (9, 45, 5, 5)


def vote(answers: list[str], right: np.ndarray, pick: list[int]) -> float:
    """Share of the most frequent answers of a draw that are right; all that are right are one."""
    votes = Counter(RIGHT if right[i] else answers[i] for i in pick)
    best = [answer for answer, n in votes.items() if n == max(votes.values())]
    return float(np.mean([answer == RIGHT for answer in best]))


def test_unjudged_samples_have_no_part_in_a_score() -> None:
    questions = {
        "q0": [sample(0, 0, RIGHT), sample(0, 1, UNJUDGED), sample(0, 2, RIGHT)],
        "q1": [sample(1, 0, WRONG), sample(1, 1, WRONG), sample(1, 2, RIGHT)],
        "q2": [sample(2, n, UNJUDGED) for n in range(3)],
    }
    found = score_benchmark(questions)
    assert found["avg_at_k"]["mean"] == pytest.approx((1 + 1 / 3) / 2)
    assert list(found["pass_at_k"]) == ["1", "2", "3"]
    assert found["pass_at_k"]["2"]["mean"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["pass_at_k"]["3"] == {"mean": 1.0, "low": None, "high": None, "questions": 1}  # q0 has two
    assert found["headline_k"] == 2
    assert found["unjudged"] == pytest.approx(4 / 9) and found["questions_without_verdict"] == 1


def test_one_question_with_few_verdicts_does_not_take_pass_at_k_from_the_others() -> None:
    questions = drawn(20, seed=4)
    before = score_benchmark({name: own for name, own in questions.items() if name != "q3"})
    questions["q3"] = [sample(3, n, RIGHT if n == 0 else UNJUDGED) for n in range(SAMPLES)]
    found = score_benchmark(questions)
    for metric in ("pass_at_k", "maj_at_k"):
        assert [s["questions"] for s in found[metric].values()] == [20, 19, 19, 19]
        assert found[metric]["5"] == before[metric]["5"]
    assert found["headline_k"] == 5  # 19 of 20 questions have it
    shown = {"model": "m", "benchmarks": {"set": found | {"missing": 0, "note": "", "partial": False}},
             "means": {"of_benchmarks": 0.5, "over_rows": 0.5, "over_rows_comparable_with_paper": False}}  # fmt: skip
    cells = [str(cell) for column in score_table(shown).columns for cell in column.cells]
    assert sum("(k = 5, 19 questions)" in cell for cell in cells) == 2


def test_a_benchmark_without_any_verdict_has_no_score() -> None:
    found = score_benchmark({"q0": [sample(0, 0, UNJUDGED)]})
    assert found["avg_at_k"] == {"mean": None, "low": None, "high": None} and found["pass_at_k"] == {}
    assert found["headline_k"] is None
    assert score_benchmark({})["unjudged"] is None


def test_shares_of_truncated_and_empty_responses() -> None:
    questions = {"q0": [sample(0, 0, WRONG, finish_reason="length", tokens=30), sample(0, 1, WRONG, None, text=" \n")]}
    found = score_benchmark(questions)
    assert (found["truncated"], found["empty"], found["tokens_mean"]) == (0.5, 0.5, 20.0)


def test_right_answers_vote_together() -> None:
    answers = ["1/2", r"\frac{1}{2}", "3", "4", None]
    questions = {"q0": [sample(0, n, RIGHT if n < 2 else WRONG, answer) for n, answer in enumerate(answers)]}
    assert score_benchmark(questions)["maj_at_k"]["5"]["mean"] == 1.0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_questions_that_are_all_alike_still_leave_an_interval(value: float) -> None:
    found = with_interval([value] * 30)
    width = 1 - 0.025 ** (1 / 30)  # Clopper and Pearson's, in closed form
    assert (found["low"], found["high"]) == pytest.approx((0.0, width) if value == 0 else (1 - width, 1.0))


def test_near_0_and_1_an_interval_moves_little_with_one_more_right_answer() -> None:
    none, one, two = (with_interval([0.0] * (30 - n) + [1 / 32] * n) for n in range(3))
    assert none["low"] == 0.0
    for fewer, more in ((none, one), (one, two)):
        assert abs(more["high"] - fewer["high"]) <= 2 / 30 / 32 and fewer["low"] <= more["low"] < more["mean"]
    all_but_one = with_interval([1.0] * 29 + [31 / 32])
    assert (all_but_one["low"], all_but_one["high"]) == pytest.approx((1 - one["high"], 1 - one["low"]))


def test_a_variance_of_independent_questions_gives_clopper_and_pearsons_interval() -> None:
    found = [with_interval([1.0] * n + [0.0] * (30 - n)) for n in (3, 4)]
    exact = [stats.binomtest(n, 30).proportion_ci(method="exact") for n in (3, 4)]
    for one, other in zip(found, exact, strict=True):
        assert (one["low"], one["high"]) == pytest.approx((other.low, other.high))


def test_questions_that_are_all_half_right_leave_an_interval() -> None:
    found = with_interval([0.5] * 5)
    assert found["low"] < 0.2 and found["high"] > 0.8


def test_the_mean_over_rows_reproduces_the_papers_average() -> None:
    """Of its Table 2, from the rows that each column has; the plain mean is another number."""
    for model, printed in published.SCORES.items():
        benchmarks = {
            name: {
                "avg_at_k": {"mean": printed[name]},
                "rows": published.ROWS[name],
                "judged": published.ROWS[name],
                "column": name,
                "settings": published.settings(name),
            }
            for name in published.COLUMNS
        }
        found = means(benchmarks)
        assert found["over_rows_comparable_with_paper"]
        # Columns and average are rounded to 0.1.
        assert found["over_rows"] == pytest.approx(printed[published.AVERAGE], abs=0.001), model
        assert found["of_benchmarks"] != pytest.approx(found["over_rows"], abs=1e-4)
        for setting, other in (("grader", "math"), ("temperature", 1.0), ("template", "chat"), ("max_tokens", 4096)):
            settings = published.settings("AMC") | {setting: other}
            changed = benchmarks | {"AMC": benchmarks["AMC"] | {"settings": settings}}
            assert not means(changed)["over_rows_comparable_with_paper"], setting
        benchmarks["AMC"]["rows"] = 40 * 32
        assert not means(benchmarks)["over_rows_comparable_with_paper"]
        del benchmarks["AMC"]
        assert not means(benchmarks)["over_rows_comparable_with_paper"]


def test_the_papers_scores_stand_beside_the_columns_that_were_evaluated() -> None:
    found = published.beside(["MATH500", None, "AIME25"])
    assert found is not None and found["source"] == published.SOURCE
    assert len(found["scores"]) == 8
    assert found["scores"]["Qwen2.5-32B KL-Cov"] == {"AIME25": 0.308, "MATH500": 0.846, "Avg": 0.522}
    assert published.beside([None, "GSM8K"]) is None


def write(folder: Path, questions: dict[str, list[dict[str, Any]]], truth: str = "1") -> Path:
    folder.mkdir()
    rows = [s for own in questions.values() for s in own]
    asked = {(row["benchmark"], row["question"]) for row in rows}
    described = [{"benchmark": b, "id": q, "prompt": f"what is {q}?", "ground_truth": truth} for b, q in sorted(asked)]
    (folder / "questions.json").write_text(json.dumps(described))
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_folders_are_compared_by_question(tmp_path: Path) -> None:
    one, other = drawn(40, seed=1), drawn(40, seed=2)
    for own in other.values():
        own[0]["verdict"] = RIGHT
    found = compare_folders(write(tmp_path / "a", one), write(tmp_path / "b", other))["set"]
    assert isinstance(found, Comparison)
    differences = matrix(other).mean(1) - matrix(one).mean(1)
    assert found.difference == pytest.approx(differences.mean()) and found.questions == 40
    reference = stats.permutation_test((differences,), np.mean, permutation_type="samples", rng=3)
    assert found.p == pytest.approx(reference.pvalue, abs=0.02)


def test_a_comparison_of_few_questions_is_not_called_noise(tmp_path: Path) -> None:
    one, other = ({f"q{q}": [sample(q, 0, verdict)] for q in range(5)} for verdict in (WRONG, RIGHT))
    table = comparison_table(write(tmp_path / "a", one), write(tmp_path / "b", other))
    said = [str(cell) for column in table.columns for cell in column.cells]
    assert "too few questions to tell" in said and "within noise" not in said


def test_folders_that_do_not_match_are_not_compared(tmp_path: Path) -> None:
    one = write(tmp_path / "a", drawn(3, seed=1))
    more = write(tmp_path / "b", drawn(4, seed=1))
    assert "the questions, their prompts or their ground truths differ" in compare_folders(one, more)["set"]
    other_truth = write(tmp_path / "t", drawn(3, seed=1), truth="2")
    assert "ground truths differ" in compare_folders(one, other_truth)["set"]
    for field, value, message in (("grader_version", "2", "other graders"), ("verdict", None, "not graded yet")):
        changed = drawn(3, seed=1)
        changed["q0"][0][field] = value
        assert message in compare_folders(one, write(tmp_path / field, changed))["set"]
    few = {"q0": [sample(0, 0, RIGHT)], "q1": [sample(1, 0, UNJUDGED)]}
    lacking = compare_folders(write(tmp_path / "c", few), write(tmp_path / "d", few))["set"]
    assert "1 questions were judged on both sides" in lacking
    other_set = write(tmp_path / "e", {"q0": [sample(0, 0, RIGHT, benchmark="other")]})
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare_folders(one, other_set)
    with pytest.raises(ConfigError, match=r"holds no questions\.json"):
        compare_folders(one, tmp_path / "absent")


def test_questions_of_one_folder_alone_are_said(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a", drawn(4, seed=1)), write(tmp_path / "b", drawn(4, seed=1))
    lines = (other / "samples.jsonl").read_text().splitlines(keepends=True)
    (other / "samples.jsonl").write_text("".join(line for line in lines if '"q3"' not in line))
    assert "1 questions are in one folder alone, q3" in compare_folders(one, other)["set"]
