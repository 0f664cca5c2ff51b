"""Intervals by question against simulations whose truth is known, closed forms, and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pyrl.evaluation.intervals import difference_interval, score_interval
from pyrl.evaluation.metrics import clustered_interval
from pyrl.evaluation.scores import with_interval

REPEATS = 1500
LEAST_COVERAGE = 0.93


def shares(rng: np.random.Generator, mean: float, questions: int, correlation: float, samples: int) -> np.ndarray:
    """[questions] shares of right samples; chances are beta distributed, with this intra-class correlation."""
    if correlation == 1.0:
        chances = (rng.random(questions) < mean).astype(float)
    elif correlation == 0.0:
        chances = np.full(questions, mean)
    else:
        size = 1.0 / correlation - 1.0
        chances = rng.beta(mean * size, (1.0 - mean) * size, questions)
    return rng.binomial(samples, chances) / samples


@pytest.mark.parametrize("questions", [10, 30, 500])
@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.5, 1.0])
def test_a_score_lies_in_its_interval_as_often_as_is_said(questions: int, correlation: float) -> None:
    rng = np.random.default_rng([questions, int(100 * correlation)])
    for mean in (0.01, 0.05, 0.3, 0.8, 0.99):
        for samples in (1,) if correlation == 1.0 else (4, 256):
            found = [score_interval(shares(rng, mean, questions, correlation, samples)) for _ in range(REPEATS)]
            covered = np.mean([low <= mean <= high for low, high in found])
            assert covered >= LEAST_COVERAGE, (mean, samples)


def test_an_interval_is_narrower_where_samples_say_more() -> None:
    """Not just Clopper and Pearson's on the questions, which would cover too: the spread of the shares counts."""
    rng = np.random.default_rng(0)
    alike, apart = (score_interval(shares(rng, 0.5, 30, correlation, 256)) for correlation in (0.0, 1.0))
    assert alike[1] - alike[0] < 0.6 * (apart[1] - apart[0])
    many = shares(rng, 0.4, 500, 0.3, 32)  # where questions are many, it is Student's within the 2 that is added
    t = stats.ttest_1samp(many, 0).confidence_interval(0.95)
    assert score_interval(many) == pytest.approx((t.low, t.high), abs=0.004)


@pytest.mark.parametrize("questions", [2, 3, 10, 30, 500])
@pytest.mark.parametrize("right", [0, 1, 3, "all"])
def test_of_right_or_wrong_questions_it_is_clopper_and_pearsons(questions: int, right: int | str) -> None:
    k = questions if right == "all" else min(int(right), questions)
    exact = stats.binomtest(k, questions).proportion_ci(method="exact")
    values = [1.0] * k + [0.0] * (questions - k)
    assert score_interval(values) == pytest.approx((exact.low, exact.high), abs=1e-9)


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """Scores, and the same but for one question: few or many questions, most of them alike, or all sorts."""
    questions = draw(st.sampled_from([2, 3, 5, 10, 20, 30, 100, 500]))
    value = st.one_of(st.sampled_from([0.0, 1 / 960, 1 / 32, 0.5, 1.0]), st.floats(0.0, 1.0))
    some = draw(st.lists(value, min_size=1, max_size=min(questions, 12)))
    rest = draw(st.one_of(value.map(lambda common: [common]), st.just(some)))
    scores = some + [rest[i % len(rest)] for i in range(questions - len(some))]
    changed = list(scores)
    changed[draw(st.integers(0, questions - 1))] = draw(value)
    return scores, changed


@given(neighbours())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_one_question_moves_an_end_by_at_most_two_over_their_number(pair: tuple[list[float], list[float]]) -> None:
    before, after = (score_interval(scores) for scores in pair)
    most = 2.0 / len(pair[0])
    assert abs(before[0] - after[0]) <= most and abs(before[1] - after[1]) <= most


def test_the_widest_step_known_is_within_the_limit() -> None:
    """All alike and low, one becomes right: the sum of squares jumps from nothing. Nearly 2, so 1.9 would be wrong."""
    moves = []
    for mean in np.linspace(0.001, 0.2, 200):
        scores = np.full(500, mean)
        before = score_interval(scores)[1]
        scores[0] = 1.0
        moves.append(500 * (score_interval(scores)[1] - before))
    assert 1.85 < max(moves) <= 2.0


@given(neighbours(), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_an_interval_holds_the_mean_and_has_a_width(pair: tuple[list[float], list[float]], confidence: float) -> None:
    low, high = score_interval(pair[0], confidence)
    assert 0.0 <= low <= np.mean(pair[0]) + 1e-12 and np.mean(pair[0]) - 1e-12 <= high <= 1.0 and high - low > 1e-3
    mirrored = score_interval([1.0 - value for value in pair[0]], confidence)
    assert mirrored == pytest.approx((1.0 - high, 1.0 - low), abs=1e-9)


def test_one_formula_serves_scores_and_the_public_function() -> None:
    correct = np.random.default_rng(1).random((12, 8)) < np.linspace(0.2, 0.9, 12)[:, None]
    found = with_interval(correct.mean(1))
    assert clustered_interval(correct) == (found["low"], found["high"]) == score_interval(correct.mean(1))


@pytest.mark.parametrize("values", [[0.5], [[0.5, 0.5]], [0.5, 1.5], [0.5, math.nan]])
def test_what_is_no_score_by_question_is_refused(values: list) -> None:
    with pytest.raises(ValueError, match=r"at least 2 questions|in \[0, 1\]"):
        score_interval(values)


@pytest.mark.parametrize("questions", [5, 10, 30])
def test_a_difference_lies_in_its_interval_as_often_as_is_said(questions: int) -> None:
    rng = np.random.default_rng(questions)
    for gain in (0.0, 0.1):
        easy = rng.uniform(0.2, 0.8, (2000, questions))
        first, second = rng.binomial(32, easy) / 32, rng.binomial(32, easy + gain) / 32
        found = [difference_interval(other - one) for one, other in zip(first, second, strict=True)]
        assert np.mean([low <= gain <= high for low, high in found]) >= 0.94


@pytest.mark.parametrize(("questions", "share"), [(30, 0.05), (30, 0.03), (40, 0.05), (40, 0.03), (300, 0.02)])
def test_so_does_one_that_few_questions_make(questions: int, share: float) -> None:
    """Most questions are never right; a few go to 0.6. Student's interval covers 58% of the second case."""
    rng = np.random.default_rng([questions, int(1000 * share)])
    chances = np.where(rng.random((2000, questions)) < share, 0.6, 0.002)
    differences = (rng.binomial(32, chances) - rng.binomial(32, 0.002, chances.shape)) / 32
    gain = share * (0.6 - 0.002)
    assert np.mean([low <= gain <= high for low, high in map(difference_interval, differences)]) >= LEAST_COVERAGE


def test_an_interval_of_a_difference_is_students_with_half_a_square_more() -> None:
    differences = np.random.default_rng(3).normal(0.05, 0.2, 20)
    spread = (19 * differences.var(ddof=1) + 0.5) / 19  # of 20 that scipy is told of by their moments
    t = stats.t(df=19, loc=differences.mean(), scale=(spread / 20) ** 0.5).interval(0.9)
    assert difference_interval(differences, 0.9) == pytest.approx(t)
    assert difference_interval([1.0, 0.0]) == (-1.0, 1.0)  # would go to -8.7 and 9.7


@given(
    st.lists(st.floats(-1, 1), min_size=3, max_size=40),
    st.integers(0, 1000),
    st.floats(-1, 1),
    st.sampled_from([0.8, 0.95]),
)
def test_an_end_of_a_difference_moves_with_one_question_by_no_more_than_its_share(
    differences: list[float], place: int, other: float, confidence: float
) -> None:
    """As much as the mean moves and, t times, the standard error; there is no value at which another formula begins."""
    before = difference_interval(differences, confidence)
    n, place = len(differences), place % len(differences)
    changed = [*differences[:place], other, *differences[place + 1 :]]
    most = abs(other - differences[place]) / n * (1 + stats.t.ppf((1 + confidence) / 2, n - 1))
    for one, two in zip(before, difference_interval(changed, confidence), strict=True):
        assert abs(one - two) <= most + 1e-12


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_equal_differences_leave_what_unseen_questions_may_hold(value: float) -> None:
    shifted = np.array([0.1, 0.2, 0.3, 0.7]) + value - np.array([0.1, 0.2, 0.3, 0.7])  # equal up to rounding
    low, high = difference_interval(shifted)
    half = stats.t.ppf(0.975, 3) * (0.5 / 12) ** 0.5
    assert (low, high) == pytest.approx((value - half, min(1.0, value + half)))
