"""The paired comparison against scipy's permutation test and its coverage on data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pyrl.evaluation.statistics import compare_paired, sign_flip_p


def scipy_p(differences: np.ndarray, resamples: int = 9_999) -> float:
    return stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=resamples, rng=1, vectorized=True
    ).pvalue


@pytest.mark.parametrize("n", [3, 8, 12])
def test_the_exact_p_is_scipys(n: int) -> None:
    differences = np.round(np.random.default_rng(n).normal(0.2, 0.5, n), 2)
    assert sign_flip_p(differences) == pytest.approx(scipy_p(differences, 2**n), abs=1e-12)


def test_questions_that_do_not_differ_change_nothing() -> None:
    differences = np.array([0.5, 0.25, -0.125, 0.5])
    assert sign_flip_p(np.append(differences, np.zeros(40))) == sign_flip_p(differences)
    assert sign_flip_p(np.zeros(40)) == 1.0


def test_the_drawn_p_is_scipys_within_its_error() -> None:
    differences = np.random.default_rng(2).normal(0.15, 0.5, 40)
    found = sign_flip_p(differences)
    assert found == pytest.approx(scipy_p(differences, 50_000), abs=4 * (found / 20_000) ** 0.5)
    assert found == sign_flip_p(differences) != sign_flip_p(differences, seed=1)


def test_equal_models_are_told_apart_in_one_of_twenty() -> None:
    rng = np.random.default_rng(3)
    rejected = [
        not compare_paired(rng.random(10), rng.random(10)).within_noise for _ in range(300)
    ]
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.035)


def test_a_comparison_says_what_it_saw() -> None:
    first = np.array([0.0, 0.25, 0.5, 0.5, 1.0, 0.0, 0.25, 0.0])
    found = compare_paired(first, first + 0.125)
    assert (found.difference, found.questions, found.verdict) == (0.125, 8, "better")
    assert found.low < 0.125 < found.high
    assert found.p == 2 / 2**8 and not found.within_noise
    second = first + np.array([0.25, 0, 0.25, 0.25, -0.5, 0.25, 0, 0.25])
    found = compare_paired(first, second)
    assert found.difference == pytest.approx(0.09375) and found.low < found.difference < found.high
    assert found.within_noise and found.verdict == "within noise"
    mirrored = compare_paired(second, first)
    assert (mirrored.difference, mirrored.p) == (-found.difference, found.p)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))
    assert compare_paired(first + 0.125, first).verdict == "worse"


@pytest.mark.parametrize("questions", [2, 5, 6])
def test_fewer_than_six_questions_cannot_tell_and_say_so(questions: int) -> None:
    found = compare_paired(np.zeros(questions), np.ones(questions))  # as different as can be
    assert (found.p < 0.05) == (questions == 6)
    assert found.verdict == ("better" if questions == 6 else "too few questions to tell")


@pytest.mark.parametrize(("first", "second"), [([0.5], [0.5]), ([0.5, 0.5], [0.5]), ([[0.5, 0.5]], [[0.5, 0.5]])])
def test_what_is_not_paired_is_refused(first: list, second: list) -> None:
    with pytest.raises(ValueError, match="the same questions and at least 2"):
        compare_paired(first, second)
