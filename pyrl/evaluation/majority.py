"""How often the majority among k of a question's samples is right: exact over all draws, in milliseconds.

Draws of k out of n samples without replacement are n independent coins of chance q = k / n, given that k of them show
heads. So with `b(u; m)` the binomial chance of u heads among the m samples of an answer, and B(k; n) of k among all,

    chance that answer j gets t votes, its rivals at most t =
        [x^k] b(t; m_j) x^t  prod_i sum_{u <= t} b(u; m_i) x^u  (1 - q + q x)^silent / B(k; n),    i over the rivals.

Every term is a chance, so that nothing overflows, and q puts the largest ones at k. A draw in which r rivals get t
votes too counts 1 / (1 + r), which is the integral of y^r over [0, 1]: a factor y beside each `u = t` replaces counting
them, and Gauss-Legendre nodes integrate the polynomial in y. The coefficient of x^k is the mean of the product times
x^-k over points on the unit circle. Errors are absolute, some 1e-14.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, prod, sqrt
from typing import NamedTuple

import numpy as np
from scipy import special, stats

NEGLIGIBLE = 1e-20
"""Chance of what is left out: far below the rounding of a score."""


class _Groups(NamedTuple):
    """Answers with equally many votes have equal chances. One entry a number of votes, most votes first."""

    votes: np.ndarray
    """int64"""
    answers: np.ndarray
    """int64: how many have so many votes"""
    shares: np.ndarray
    """fp64: sum of the shares of their samples that are right"""


def majority_is_right(votes: Sequence[int], shares: Sequence[float], silent: int, k: int) -> float:
    """Mean over all draws of k samples of the share of the most frequent answers that is right.

    Args:
        votes: samples of each answer, at least 1.
        shares: in [0, 1], of each answer: how much of a win of it counts.
        silent: further samples, which can be drawn and have no vote; a draw of these alone counts 0.
        k: from 1 to the number of all samples.
    """
    groups = _grouped(votes, shares)
    samples = sum(votes) + silent
    if not any(shares):
        return 0.0
    if len(set(shares)) == 1:  # whoever wins
        return shares[0] * (1.0 - prod(max(0, silent - i) / (samples - i) for i in range(k)))
    if k == samples:
        return float(groups.shares[0] / groups.answers[0])
    if (share := _certain(groups, samples, k)) is not None:
        return share
    found = _without_rival(groups, samples, k) + _with_rivals(groups, silent, k)
    return float(np.clip(found / _binomial(samples, k / samples)[k], 0.0, 1.0))


def _grouped(votes: Sequence[int], shares: Sequence[float]) -> _Groups:
    distinct, group, answers = np.unique(np.asarray(votes, dtype=np.int64), return_inverse=True, return_counts=True)
    summed = np.bincount(group, weights=np.asarray(shares, dtype=np.float64), minlength=len(distinct))
    return _Groups(distinct[::-1], answers[::-1], summed[::-1])


def _certain(groups: _Groups, samples: int, k: int) -> float | None:
    """The share of the first answer if it alone has one and wins every draw; scores of 1 are exact."""
    if groups.answers[0] > 1 or groups.shares[1:].any():
        return None
    least = max(0, k - (samples - int(groups.votes[0])))
    return float(groups.shares[0]) if least > min(int(groups.votes[1]), k - least) else None


def _without_rival(groups: _Groups, samples: int, k: int) -> float:
    """The draws in which the first answer gets more votes than another one has at all, times B(k; n)."""
    most, q = int(groups.votes[0]), k / samples
    if groups.answers[0] > 1:
        return 0.0
    own, others = _binomial(most, q), _binomial(samples - most, q)
    t = np.arange(max(int(groups.votes[1]) + 1, k - (samples - most)), min(most, k) + 1)
    return float(groups.shares[0] * (own[t] @ others[k - t]))


def _with_rivals(groups: _Groups, silent: int, k: int) -> float:
    """The draws in which the winner has t votes, for every t that at least two answers can reach, times B(k; n)."""
    samples = int(groups.votes @ groups.answers) + silent
    q = k / samples
    # A product wraps round after so many coefficients: none is below 0, and those above are negligible.
    points = max(k + 1, int(stats.binom.isf(NEGLIGIBLE, samples, q)) - k + 1)
    place = np.arange(points // 2 + 1)  # the other half is conjugate
    circle = np.exp(2j * np.pi * np.arange(points) / points)
    to_coefficient = circle[-k * place % points] * np.where((place == 0) | (2 * place == points), 1, 2) / points
    most = min(k, int(groups.votes[0] if groups.answers[0] > 1 else groups.votes[1]))
    chances = stats.binom.pmf(np.arange(most + 1), groups.votes[:, None], q)  # [groups, most + 1]
    below = np.zeros((len(chances), len(place)), dtype=np.complex128)  # sum of b(u) x^u over u < t
    total = 0.0
    for t in range(1, most + 1):
        able = int(np.sum(groups.votes >= t))  # of the groups, the first so many
        below[:able] += chances[:able, t - 1, None] * circle[(t - 1) * place % points]
        if _at_most(groups, silent, k, t, chances) < NEGLIGIBLE:
            continue
        exactly = chances[:able, t, None] * circle[t * place % points]
        ties = min(int(groups.answers[:able].sum()), k // t) - 1
        rest = samples - int(groups.votes[:able] @ groups.answers[:able])
        product = _integral(groups, below[:able], exactly, ties) * (1.0 - q + q * circle[place]) ** rest
        total += float((product @ to_coefficient).real)
    return total


def _at_most(groups: _Groups, silent: int, k: int, t: int, chances: np.ndarray) -> float:
    """A bound on what draws in which the winner has t votes can add."""
    if np.minimum(groups.votes, t) @ groups.answers + silent < k:
        return 0.0  # there is no such draw
    return min(groups.shares @ chances[:, t], np.prod(chances[:, : t + 1].sum(1) ** groups.answers))


def _integral(groups: _Groups, below: np.ndarray, exactly: np.ndarray, degree: int) -> np.ndarray:
    """Integral over y in [0, 1] of the sum over answers of share * exactly * (below + y exactly) of all their rivals.

    At each point of the circle; `below`, `exactly`: complex [groups, points] of the groups that can get t votes.
    `degree` in y.
    """
    nodes, weights = _nodes(degree)
    product = np.ones((len(nodes), below.shape[1]), dtype=np.complex128)
    found = np.zeros_like(product)
    for group in range(len(below)):
        one = below[group] + nodes[:, None] * exactly[group]
        but_one = _power(one, int(groups.answers[group]) - 1)
        found = found * one * but_one + product * but_one * (groups.shares[group] * exactly[group])
        product *= one * but_one
    return weights @ found


def _power(base: np.ndarray, exponent: int) -> np.ndarray:
    """By squaring: numpy's own goes through logarithms."""
    found = np.ones_like(base)
    while exponent:
        if exponent & 1:
            found = found * base
        base, exponent = base * base, exponent >> 1
    return found


@lru_cache(maxsize=1024)
def _nodes(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on [0, 1] for a polynomial of this degree with coefficients of at least 0.

    d // 2 + 1 nodes are exact. On the ellipse of parameter 1 + h round [0, 1] such a polynomial is at most
    (1 + h^2 / 4)^d times its value at 1, so that g nodes leave about exp(d h^2 / 4 - 2 g h) of that (Trefethen,
    Approximation Theory, theorem 19.3): exp(-4 g^2 / d) at h = 4 g / d, 1e-19 from g = 3.3 sqrt(d) on.
    """
    nodes, weights = special.roots_legendre(min(degree // 2 + 1, ceil(3.5 * sqrt(degree)) + 8))
    return (nodes + 1) / 2, weights / 2


def _binomial(trials: int, q: float) -> np.ndarray:
    """The chances of 0, 1, ..., `trials` heads."""
    return stats.binom.pmf(np.arange(trials + 1), trials, q)
