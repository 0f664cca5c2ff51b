"""Scores against counting every draw of k samples, and the interval by question against scipy."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pyrl.evaluation.metrics import avg_at_k, clustered_interval, maj_at_k, pass_at_k, pass_at_k_of_counts


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4), st.integers(1, 5))
@settings(deadline=None)
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(correct: list[list[bool]], k: int) -> None:
    expected = np.mean([[any(draw) for draw in combinations(question, k)] for question in correct])
    assert pass_at_k(np.array(correct), k) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_counts_of_questions_with_different_numbers_of_samples() -> None:
    """1 - C(6, 4) / C(8, 4) = 1 - 15/70; 3 of 4 right: every draw of 4 has one."""
    assert pass_at_k_of_counts([2, 3, 0], [8, 4, 64], 4) == pytest.approx([1 - 15 / 70, 1.0, 0.0], rel=1e-12)


def test_large_counts_do_not_overflow() -> None:
    assert pass_at_k_of_counts([1], [100_000], 50_000) == pytest.approx([0.5], rel=1e-9)


@pytest.mark.parametrize(
    ("right", "samples", "k", "message"),
    [([1], [4], 0, "k 0: want 1 to"), ([1], [4], 5, "k 5: want 1 to"), ([5], [4], 1, "right: want one count"),
     ([-1], [4], 1, "right: want one count"), ([1, 2], [4], 1, "right: want one count"), ([], [], 1, "k 1")],
)  # fmt: skip
def test_bad_counts_are_refused(right: list[int], samples: list[int], k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pass_at_k_of_counts(right, samples, k)


@pytest.mark.parametrize("correct", [np.ones(3, dtype=bool), np.ones((2, 3)), np.ones((0, 3), dtype=bool)])
def test_what_is_not_a_boolean_matrix_is_refused(correct: np.ndarray) -> None:
    with pytest.raises(ValueError, match="correct: want a boolean array"):
        pass_at_k(correct, 1)


def majority(draw: tuple[tuple[str | None, bool], ...]) -> float:
    """Of one draw, literally."""
    votes = Counter(answer for answer, _ in draw if answer is not None)
    if not votes:
        return 0.0
    tied = [answer for answer, n in votes.items() if n == max(votes.values())]
    return float(np.mean([answer == "right" for answer in tied]))


samples = st.lists(st.sampled_from(["right", "a", "b", "c", None]), min_size=6, max_size=6)


@given(st.lists(samples, min_size=1, max_size=3), st.integers(1, 6))
@settings(deadline=None)
def test_maj_at_k_is_the_mean_over_all_draws(answers: list[list[str | None]], k: int) -> None:
    judged = [[(answer, answer == "right") for answer in row] for row in answers]
    expected = np.mean([np.mean([majority(draw) for draw in combinations(row, k)]) for row in judged])
    correct = np.array([[right for _, right in row] for row in judged])
    assert maj_at_k(answers, correct, k) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_maj_at_k_by_hand() -> None:
    """Two of two for 5; one each of 5 and 7: half; nobody answers: 0. Of 1 sample it is avg@1."""
    correct = np.array([[True, True, False], [True, False, False], [False, False, False]])
    answers = [["5", "5", "7"], ["5", "7", None], [None, None, None]]
    assert maj_at_k(answers, correct, 3) == pytest.approx((1 + 0.5 + 0) / 3)
    assert maj_at_k(answers, correct, 1) == pytest.approx(avg_at_k(correct)) == pytest.approx(3 / 9)


def test_an_answer_that_was_judged_both_ways_is_right_by_its_share() -> None:
    assert maj_at_k([["5", "5"]], np.array([[True, False]]), 2) == 0.5


def test_maj_at_k_of_32_samples_is_exact_and_quick() -> None:
    answers = [["5"] * 17 + [str(i) for i in range(100, 115)]]
    correct = np.array([[True] * 17 + [False] * 15])
    assert maj_at_k(answers, correct, 32) == 1.0
    assert 0.9 < maj_at_k(answers, correct, 8) < 1.0


@pytest.mark.parametrize(("answers", "k"), [([["1", "2"]], 0), ([["1", "2"]], 3), ([["1"]], 1), ([], 1)])
def test_maj_at_k_refuses_what_does_not_fit(answers: list[list[str]], k: int) -> None:
    with pytest.raises(ValueError, match=r"k |answers"):
        maj_at_k(answers, np.array([[True, False]]), k)


def test_the_interval_is_by_question() -> None:
    correct = np.random.default_rng(0).random((12, 8)) < np.linspace(0.2, 0.9, 12)[:, None]
    found = clustered_interval(correct, 0.9)
    repeated = np.repeat(correct, 4, axis=1)  # more samples of the same questions tell no more about questions
    assert clustered_interval(repeated, 0.9) == found
    exact = stats.binomtest(3, 4).proportion_ci(0.9, method="exact")
    low, high = clustered_interval(np.array([[True], [True], [True], [False]]), 0.9)
    assert (low, high) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize(("questions", "confidence"), [(1, 0.95), (3, 0.0), (3, 1.0)])
def test_no_interval_of_one_question_or_without_a_level(questions: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"at least 2 questions|confidence"):
        clustered_interval(np.ones((questions, 4), dtype=bool), confidence)
