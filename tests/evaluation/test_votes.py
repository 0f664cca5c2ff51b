"""Votes of stored samples: spellings of one answer together, right or wrong, graded by real processes."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pyrl.evaluation.config import EvaluationConfig
from pyrl.evaluation.grade import grade_folder
from pyrl.evaluation.scores import score_folder
from pyrl.evaluation.store import read_samples
from pyrl.evaluation.votes import votes
from pyrl.reward.forms import text_form

QUARTER = ["0.25", r"\frac14", "1/4", r"25\%"]
HANGS = r"\int_0^1 e^{-x^2}\ln(x^3+1) dx"  # sympy needs minutes


def write(folder: Path, questions: dict[str, list[str]], text: str = r"So \boxed{%s}") -> Path:
    """`questions`: ground truth -> answers"""
    folder.mkdir()
    described = [{"benchmark": "set", "id": truth, "prompt": "?", "ground_truth": truth} for truth in questions]
    (folder / "questions.json").write_text(json.dumps(described))
    fields = ("verdict", "reason", "extracted", "grader", "grader_version", "vote")
    rows = [
        {"step": 0, "benchmark": "set", "question": truth, "sample": n, "text": text % answer, "tokens": 5,
         "finish_reason": "stop"} | dict.fromkeys(fields)
        for truth, answers in questions.items() for n, answer in enumerate(answers)
    ]  # fmt: skip
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(grader: str = "math", samples: int = 6, **changes: Any) -> EvaluationConfig:
    benchmark = {"source": "x.jsonl", "samples": samples, "grader": grader}
    return EvaluationConfig.model_validate({"model": "x", "benchmarks": {"set": benchmark}} | changes)


def classes(folder: Path, question: str) -> list[list[str]]:
    """Answers of a question that vote together."""
    rows = [row for row in read_samples(folder).values() if row["question"] == question]
    found: dict[str | None, list[str]] = {}
    for row, vote in zip(rows, votes(rows), strict=True):
        found.setdefault(vote, []).append(row["extracted"])
    return list(found.values())


@pytest.mark.parametrize("grader", ["math", "math:paper"])
def test_spellings_of_one_answer_win_together(tmp_path: Path, grader: str) -> None:
    """Right of one question, wrong of the others: four votes against two."""
    answers = [*QUARTER, "3", "3"]
    folder = write(tmp_path / "out", {"0.25": answers, "3": answers, "7": answers})
    assert grade_folder(settings(grader), folder) == 18
    scores = score_folder(settings(grader), folder)["benchmarks"]["set"]
    for question in ("3", "7") if grader == "math:paper" else ("0.25", "3", "7"):
        assert classes(folder, question) == [QUARTER, ["3", "3"]]
    if grader == "math":
        assert scores["maj_at_k"]["6"]["mean"] == pytest.approx((1 + 0 + 0) / 3)
        assert scores["maj_at_k"]["1"]["mean"] == pytest.approx((4 + 2 + 0) / 18)


def test_a_hostile_answer_votes_by_its_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The units tell the grader that it is wrong; the form must read it, and is given up after the wall limit."""
    hostile = [rf"{HANGS}\text{{ m}}", r"9^{9^{9^9}}\text{ m}", "(" * 200 + "1" + ")" * 200]
    answers = [*hostile, hostile[0], r"\frac12", "0.5"]
    folder = write(tmp_path / "out", {r"34\text{ cm}": answers})
    with caplog.at_level(logging.WARNING):
        grade_folder(settings(grader_timeout_seconds=5.0), folder)
    rows = list(read_samples(folder).values())
    assert {row["verdict"] for row in rows} == {"wrong"}
    assert [row["vote"] for row in rows[:4]] == [list(text_form(answer)) for answer in answers[:4]]
    assert classes(folder, r"34\text{ cm}") == [[hostile[0]] * 2, [hostile[1]], [hostile[2]], [r"\frac12", "0.5"]]
    assert "1 of 5 distinct wrong answers could not be read and vote by their text" in caplog.text


COUNTDOWN = json.dumps({"numbers": [1, 2], "target": 3, "count": 2})


def test_answers_of_other_graders_vote_as_they_stand(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", {COUNTDOWN: ["1-2", "2-1", "1-2", "1+2", "2+1"]}, "%s")
    grade_folder(settings("countdown"), folder)
    assert classes(folder, COUNTDOWN) == [["1-2", "1-2"], ["2-1"], ["1+2", "2+1"]]


def test_samples_that_were_graded_before_votes_were_stored_are_graded_again(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", {COUNTDOWN: ["1-2", "1+2", "3"]}, "%s")
    assert grade_folder(settings("countdown"), folder) == 3
    graded, path = read_samples(folder), folder / "samples.jsonl"
    path.write_text("".join(json.dumps({k: v for k, v in r.items() if k != "vote"}) + "\n" for r in graded.values()))
    assert grade_folder(settings("countdown"), folder) == 3
    assert read_samples(folder) == graded
    assert grade_folder(settings("countdown"), folder) == 0


def row(value: str | None, unit: str = "", name: str = "", verdict: str = "wrong") -> dict[str, Any]:
    return {"verdict": verdict, "vote": None if value is None else [value, unit, name]}


def test_right_answers_are_one_and_silence_has_no_vote() -> None:
    found = votes([row(None, verdict="right"), row(None, verdict="right"), row(None), row("right"), row("7")])
    assert found[0] == found[1] and found[2] is None and len({*found}) == 4


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        ([row("34"), row("34", "cm"), row("34", "cm", "x"), row("34", "", "x")], [4]),
        ([row("34"), row("34", "cm"), row("34", "m"), row("34", "m", "x")], [2, 1, 1]),
        ([row("3"), row("3", "", "x"), row("3", "", "y")], [1, 1, 1]),
        ([row("1/4", "%"), row("1/4"), row("25")], [2, 1]),
        ([row("1/4", "%"), row("25"), row("25")], [3]),
        ([row("1/4", "%"), row("1/4", "%"), row("5")], [2, 1]),
        ([row("1/4", "%"), row("25", "cm"), row("1/4", "m"), row("1/4", "cm")], [1, 1, 1, 1]),
        ([row("1/4", "%"), row("1/4"), row("1/4", "m"), row("1/4", "cm")], [2, 1, 1]),
        ([row("yes", "%"), row("yes")], [2]),
    ],
)
def test_units_and_names_divide_only_where_they_differ(rows: list[dict[str, Any]], sizes: list[int]) -> None:
    assert sorted(Counter(votes(rows)).values(), reverse=True) == sizes
