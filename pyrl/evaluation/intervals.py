"""Intervals by question: of a mean score, and of a mean difference of paired scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

EXTRA_SQUARES = 2.0
"""Added to both sums of squares of `score_interval`: as much as eight more questions add, half of them right. The
smallest round number with which no end moves by more than 2 / questions when one question changes."""
EXTRA_DIFFERENCE = 0.5
"""Added to the sum of squares of `difference_interval`, as by one question more that differs by 0.7. Two policies often
differ on a few questions alone, of which a small benchmark may hold none: there Student's 95% can be 22%."""


def score_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of `values` ([n], a score in [0, 1] per question), within [0, 1] and never of zero width.

    Clopper and Pearson's for as many independent right-or-wrong questions as carry the information of these n (Korn
    and Graubard, Survey Methodology 24, 1998): n / d, where d in (0, 1] is the variance of the scores over that of
    right-or-wrong ones, m (1 - m):

        d = min(1, (t / z)^2 n / (n - 1) (S + 2) / (n m (1 - m) + 2)),   S = sum (value - m)^2,   m = mean

    with the two-sided quantiles t (Student, n - 1 degrees) and z (normal). Where all samples of each question agree,
    d is 1 and it is Clopper and Pearson's on the questions. The 2 (`EXTRA_SQUARES`) is a deviation: it makes the ends
    move little with one question. Raises ValueError: fewer than 2 questions, a value outside [0, 1], or a confidence
    outside (0, 1).
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or scores.size < 2:
        raise ValueError(f"values: an interval by question needs at least 2 questions, got shape {scores.shape}")
    if not ((scores >= 0.0) & (scores <= 1.0)).all():
        raise ValueError("values: want scores in [0, 1]")
    _check_confidence(confidence)
    n, mean, tail = scores.size, float(scores.mean()), (1.0 - confidence) / 2.0
    squares = float(((scores - mean) ** 2).sum())
    small_sample = (special.stdtrit(n - 1, tail) / special.ndtri(tail)) ** 2 * n / (n - 1)
    spread = (squares + EXTRA_SQUARES) / (n * mean * (1.0 - mean) + EXTRA_SQUARES)
    questions = n / min(1.0, small_sample * spread)
    right, wrong = mean * questions, (1.0 - mean) * questions
    low = float(special.betaincinv(right, wrong + 1.0, tail)) if right > 0.0 else 0.0
    high = float(special.betainccinv(right + 1.0, wrong, tail)) if wrong > 0.0 else 1.0
    return low, high


def difference_interval(differences: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of `differences` ([n], in [-1, 1], of two scores per question), cut to [-1, 1] and never of
    zero width.

    Student's with n - 1 degrees and a larger sum of squares: m +- t sqrt((S + 0.5) / (n (n - 1))), with the mean m and
    S = sum (difference - m)^2. The 0.5 (`EXTRA_DIFFERENCE`) is a deviation, for differences that are nearly all equal.
    Raises ValueError: fewer than 2 questions, or a confidence outside (0, 1).
    """
    found = np.asarray(differences, dtype=np.float64)
    if found.ndim != 1 or found.size < 2:
        raise ValueError(f"differences: an interval by question needs at least 2 questions, got shape {found.shape}")
    _check_confidence(confidence)
    n, mean = found.size, float(found.mean())
    squares = float(((found - mean) ** 2).sum()) + EXTRA_DIFFERENCE
    half = -float(special.stdtrit(n - 1, (1.0 - confidence) / 2.0)) * (squares / (n * (n - 1))) ** 0.5
    return max(-1.0, mean - half), min(1.0, mean + half)


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence {confidence}: want a fraction between 0 and 1")
