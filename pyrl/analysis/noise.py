"""Covariance of a linear fit to a training curve, whose errors depend on one another from step to step.

A reward curve scatters in two ways at once: sampling noise, new in every step, and drift that lasts for many steps.
With regressors that trend, as entropy does, the usual kernel estimates (Newey-West) are too small at a few hundred
steps, and one autoregressive coefficient, read off the first lag, misses a slow drift under sampling noise. So the
errors are modelled as

    e_t = s_t + w_t,   s_t = phi s_{t-1} + innovation,   w_t white,   share = var(s) / (var(s) + var(w)),

whose restricted likelihood (what the residuals say, with the fitted coefficients integrated out) costs O(n) to
evaluate, and the covariance of the least-squares coefficients is averaged over a grid of (phi, share), weighted by
likelihood. The average matters: a single best value leaves out that it is not known. Unequal variance along the curve
is added by the ratio of the squared residuals' sandwich to the one that this model expects, which is also its
small-sample correction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve_banded, cholesky_banded
from scipy.signal import lfilter

PHI = (0.4, 0.6, 0.8, 0.9, 0.95, 0.98)
SHARE = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
WHITE_PRIOR = 0.8
"""Prior probability that there is no drift at all; the rest is spread evenly over the grid."""
LONGEST_MEMORY = 1 / 3
"""Drift that lasts for more than this share of the curve cannot be told from the curve itself, and is not tried."""
EQUAL_VARIANCE_WEIGHT = 20.0
"""How many squared residuals the assumption of equal variance is worth when the sandwich is formed."""


@dataclass(frozen=True, slots=True)
class NoiseModel:
    """The most likely member of the grid, and how likely white noise is; for reports."""

    phi: float
    share: float
    white_probability: float


def errors_covariance(q: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, NoiseModel]:
    """Covariance [p, p] of q'e for orthonormal regressors q [n, p] and the residuals [n] of a fit to them.

    With X = q r, the coefficients' covariance is r^-1 (this) r^-T. Zero residuals give zero.
    """
    n, p = q.shape
    if n <= p or not np.any(errors):
        return np.zeros((p, p)), NoiseModel(0.0, 0.0, 1.0)
    grid = _grid(n)
    likelihood, variance = np.array([_restricted_likelihood(q, errors, phi, share) for phi, share in grid]).T
    prior = np.full(len(grid), (1 - WHITE_PRIOR) / max(1, len(grid) - 1))
    prior[0] = WHITE_PRIOR
    weight = prior * np.exp(likelihood - likelihood.max())
    weight /= weight.sum()
    model, sandwich, memory = np.zeros((p, p)), np.zeros((p, p)), 0.0
    for (phi, share), w, v in zip(grid, weight, variance, strict=True):
        correlated = share * _ar_correlation_times(q, phi) + (1 - share) * q if share else q
        core = q.T @ correlated
        residual_variance = 1 - 2 * (q * correlated).sum(1) + ((q @ core) * q).sum(1)
        model += w * v * core
        sandwich += w * v * (q * residual_variance[:, None]).T @ q
        memory += w * 2 * (share * phi) ** 2 / (1 - phi**2)
    model = _unequal_variance(model, sandwich, q, errors, memory)
    best = grid[int(weight.argmax())]
    return model, NoiseModel(*best, white_probability=float(weight[0]))


def white_covariance(q: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """The same for independent errors of equal variance: the textbook formula."""
    n, p = q.shape
    return np.eye(p) * (errors @ errors / (n - p) if n > p else 0.0)


def _grid(n: int) -> list[tuple[float, float]]:
    memories = [phi for phi in PHI if 1 / (1 - phi) <= LONGEST_MEMORY * n]
    return [(0.0, 0.0), *((phi, share) for phi in memories for share in SHARE)]


def _restricted_likelihood(q: np.ndarray, errors: np.ndarray, phi: float, share: float) -> tuple[float, float]:
    """(log restricted likelihood up to a constant, variance of one error) under correlation
    C = share AR(phi) + (1 - share) I, whose inverse is (share I + (1 - share) T)^-1 T with T tridiagonal."""
    n, p = q.shape
    data = np.column_stack([q, errors])
    weighted, log_det = data, 0.0
    if share:
        diagonal = np.full(n, (1 + phi**2) / (1 - phi**2))
        diagonal[[0, -1]] = 1 / (1 - phi**2)
        beside = -phi / (1 - phi**2)
        t_data = diagonal[:, None] * data
        t_data[:-1] += beside * data[1:]
        t_data[1:] += beside * data[:-1]
        band = np.zeros((2, n))
        band[0, 1:] = (1 - share) * beside
        band[1] = share + (1 - share) * diagonal
        factor = cholesky_banded(band, check_finite=False)
        weighted = cho_solve_banded((factor, False), t_data, check_finite=False)
        log_det = 2 * np.log(factor[1]).sum() + (n - 1) * np.log1p(-(phi**2))
    gram = data.T @ weighted
    xx, xe = gram[:p, :p], gram[:p, p]
    variance = max(gram[p, p] - xe @ np.linalg.solve(xx, xe), np.finfo(float).tiny) / (n - p)
    return -0.5 * ((n - p) * np.log(variance) + log_det + np.linalg.slogdet(xx)[1]), variance


def _ar_correlation_times(q: np.ndarray, phi: float) -> np.ndarray:
    """The matrix phi^|i-j| times q, by one filter in each direction."""
    forward = lfilter([1.0], [1.0, -phi], q, axis=0)
    backward = lfilter([1.0], [1.0, -phi], q[::-1], axis=0)[::-1]
    return forward + backward - q


def _unequal_variance(
    model: np.ndarray, expected: np.ndarray, q: np.ndarray, errors: np.ndarray, memory: float
) -> np.ndarray:
    """`model`, stretched by how far the squared residuals' sandwich exceeds what the model expects of it.

    The sandwich counts as many observations as carry it, and is drawn towards the expectation accordingly: with a
    handful of influential steps it would be noise.
    """
    scores = q * errors[:, None]
    leverage = (q * q).sum(1)
    carried = leverage.sum() ** 2 / (leverage @ leverage) / (1 + memory)
    seen = (carried * scores.T @ scores + EQUAL_VARIANCE_WEIGHT * expected) / (carried + EQUAL_VARIANCE_WEIGHT)
    stretch = _power(seen, 0.5) @ _power(expected, -0.5)
    return stretch @ model @ stretch.T


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    """Power of a symmetric positive definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, np.finfo(float).tiny) ** exponent) @ vectors.T
