"""Is one score better than another? Questions are the observations; both scores answer the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike

from pyrl.evaluation.intervals import difference_interval

LEVEL = 0.05
"""A difference counts where p is below it."""
EXACT_QUESTIONS = 16
"""Up to so many questions that differ, every assignment of signs is counted; beyond, `RESAMPLES` are drawn."""
RESAMPLES = 20_000
TOLERANCE = 1e-12
"""Sums of the same differences in another order are equal up to it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of paired scores of the same questions, second minus first."""

    difference: float
    """Mean over questions."""
    low: float
    high: float
    """Interval of the mean, by question (`difference_interval`)."""
    p: float
    """Two-sided: how often signs at random give a mean difference as large."""
    questions: int

    @property
    def within_noise(self) -> bool:
        """Not told apart at 5%."""
        return self.p >= LEVEL

    @property
    def verdict(self) -> str:
        """In a word or two. With fewer than six questions p is never below 0.05, whatever the scores."""
        if 2.0 ** (1 - self.questions) >= LEVEL:
            return "too few questions to tell"
        return "within noise" if self.within_noise else "better" if self.difference > 0 else "worse"


def compare_paired(first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95, seed: int = 0) -> Comparison:
    """Sign-flip permutation test and interval of the mean of `second` - `first` ([n], a score in [0, 1] per question).

    Under the hypothesis that both models are alike, each question's difference is as likely to be negative. p counts
    the observed assignment too, so it is never 0. The interval is that of `difference_interval`. The
    same `seed` gives the same numbers. Raises ValueError: different shapes, or fewer than
    2 questions.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != other.shape or one.ndim != 1 or one.size < 2:
        raise ValueError(f"scores: want one a question, the same questions and at least 2, got {one.shape} and "
                         f"{other.shape}")  # fmt: skip
    differences = other - one
    low, high = difference_interval(differences, confidence)
    return Comparison(float(differences.mean()), low, high, sign_flip_p(differences, seed=seed), one.size)


def sign_flip_p(differences: np.ndarray, *, seed: int = 0) -> float:
    """Two-sided p of the mean of `differences` ([n]) under random signs; exact where few are not 0, else by draws."""
    moved = differences[differences != 0]
    observed = abs(moved.sum()) - TOLERANCE
    if moved.size <= EXACT_QUESTIONS:
        sums = np.array(list(product((1.0, -1.0), repeat=moved.size))) @ moved
        return float(np.mean(np.abs(sums) >= observed))
    signs = np.random.default_rng(seed).integers(0, 2, (RESAMPLES, moved.size), dtype=np.int8) * 2.0 - 1.0
    return float((1 + np.sum(np.abs(signs @ moved) >= observed)) / (1 + RESAMPLES))

