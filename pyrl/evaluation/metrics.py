"""Scores of repeated samples a question. `correct` is bool [questions, samples] everywhere; scores are in [0, 1]."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from pyrl.evaluation.intervals import score_interval
from pyrl.evaluation.majority import majority_is_right


def avg_at_k(correct: ArrayLike) -> float:
    """Share of the samples that are right, each question weighing the same. ValueError for another shape or dtype."""
    return float(_matrix(correct).mean())


def pass_at_k(correct: ArrayLike, k: int) -> float:
    """Unbiased estimate of the chance that one of `k` samples of a question is right, mean over questions.

    Source: arXiv 2107.03374 eq. 1, 1 - C(n - c, k) / C(n, k). Raises ValueError: another shape or dtype, or k outside 1
    to the number of samples.
    """
    found = _matrix(correct)
    return float(pass_at_k_of_counts(found.sum(1), np.full(len(found), found.shape[1]), k).mean())


def pass_at_k_of_counts(right: ArrayLike, samples: ArrayLike, k: int) -> np.ndarray:
    """The same for each question, fp64 [questions], from its numbers of right and of all samples.

    Raises ValueError: k below 1 or above the samples of some question, or more right than there are samples.
    """
    right, samples = np.asarray(right, dtype=np.int64), np.asarray(samples, dtype=np.int64)
    if right.shape != samples.shape or (right < 0).any() or (right > samples).any():
        raise ValueError("right: want one count a question, from 0 to its samples")
    if samples.size == 0 or not 1 <= k <= samples.min():
        raise ValueError(f"k {k}: want 1 to the samples of every question, {samples.min() if samples.size else 0}")
    # C(n - c, k) / C(n, k) as a product of k factors, none of which overflows
    draws = np.arange(k)
    left = np.clip((samples - right)[:, None] - draws, 0, None)
    return 1.0 - np.prod(left / (samples[:, None] - draws), axis=1)


def maj_at_k(answers: Sequence[Sequence[str | None]], correct: ArrayLike, k: int) -> float:
    """Chance that the most frequent answer among `k` samples of a question is right, mean over questions.

    Exact: the mean over all draws of k of the question's samples, as in `pass_at_k`. Answers that are tied for the most
    votes share: the draw counts as the share of them that are right. `answers`: normalised, in the shape of `correct`;
    None gave no answer and has no vote, and a draw without any vote is wrong. Where equal answers were judged
    differently, an answer is right by the share of its samples that are. Raises ValueError as `pass_at_k`.
    """
    found = _matrix(correct)
    questions, samples = found.shape
    if len(answers) != questions or any(len(row) != samples for row in answers):
        raise ValueError(f"answers: want one a sample, {questions} x {samples}")
    if not 1 <= k <= samples:
        raise ValueError(f"k {k}: want 1 to the {samples} samples of a question")
    return float(np.mean([_majority_is_right(row, right, k) for row, right in zip(answers, found, strict=True)]))


def clustered_interval(correct: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of `avg_at_k` with a question as one observation: `score_interval` of the questions' shares.

    Samples of one question are not independent of one another; questions are. Raises ValueError: fewer than 2
    questions, or a confidence outside (0, 1).
    """
    return score_interval(_matrix(correct).mean(1), confidence)


def _matrix(correct: ArrayLike) -> np.ndarray:
    found = np.asarray(correct)
    if found.ndim != 2 or found.dtype != np.bool_ or 0 in found.shape:
        raise ValueError(f"correct: want a boolean array [questions, samples], got {found.dtype} {found.shape}")
    return found


def _majority_is_right(answers: Sequence[str | None], right: np.ndarray, k: int) -> float:
    """Of one question."""
    votes = Counter(answer for answer in answers if answer is not None)
    rights = Counter(answer for answer, is_right in zip(answers, right, strict=True) if is_right)
    shares = [rights[answer] / n for answer, n in votes.items()]
    return majority_is_right(list(votes.values()), shares, len(answers) - votes.total(), k)
