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

FEWEST_DIFFERENCED = 10
"""Values from which first differences give their noise."""


@dataclass(frozen=True, slots=True)
class NoiseModel:
    """The most likely member of the grid, how likely white noise is, and averages over the grid by likelihood."""

    phi: float
    share: float
    white_probability: float
    variance: float
    """Of one error. Above the residuals' own where they drift: a short curve has less than a drift's whole range."""
    effective_steps: float
    """Independent errors whose mean would be as precise as that of these."""


def errors_covariance(q: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, NoiseModel]:
    """Covariance [p, p] of q'e for orthonormal regressors q [n, p] and the residuals [n] of a fit to them.

    With X = q r, the coefficients' covariance is r^-1 (this) r^-T. Zero residuals give zero.
    """
    n, p = q.shape
    if n <= p or not np.any(errors):
        return np.zeros((p, p)), NoiseModel(0.0, 0.0, 1.0, 0.0, float(n))
    grid = noise_grid(n)
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
    inflation = [1 + 2 * share * phi / (1 - phi) for phi, share in grid]
    return model, NoiseModel(*best, float(weight[0]), float(weight @ variance), n / float(weight @ inflation))


def difference_noise(values: np.ndarray) -> float | None:
    """Standard deviation of one step's independent noise, from first differences: sqrt(mean(d^2) / 2), with d of the
    values [n] less their cubic trend in the step (von Neumann et al. 1941).

    No fit to anything but the step enters, so it says what any fit must leave. Drift that lasts for several steps
    counts for little in it. None below 10 values.
    """
    if values.size < FEWEST_DIFFERENCED:
        return None
    place = np.linspace(-1, 1, values.size)
    detrended = values - np.polyval(np.polyfit(place, values, 3), place)
    return float(np.sqrt(np.mean(np.diff(detrended) ** 2) / 2))


def white_covariance(q: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """The same for independent errors of equal variance: the textbook formula."""
    n, p = q.shape
    return np.eye(p) * (errors @ errors / (n - p) if n > p else 0.0)


def noise_grid(n: int) -> list[tuple[float, float]]:
    """(phi, share) of the noise models tried on n steps, white noise first."""
    memories = [phi for phi in PHI if 1 / (1 - phi) <= LONGEST_MEMORY * n]
    return [(0.0, 0.0), *((phi, share) for phi in memories for share in SHARE)]


def weighted_gram(data: np.ndarray, phi: float, share: float) -> tuple[np.ndarray, float]:
    """(data' C^-1 data, log det C) for data [n, k] under correlation C = share AR(phi) + (1 - share) I, in O(n): the
    inverse is (share I + (1 - share) T)^-1 T with T tridiagonal."""
    if not share:
        return data.T @ data, 0.0
    n = data.shape[0]
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
    return data.T @ weighted, float(2 * np.log(factor[1]).sum() + (n - 1) * np.log1p(-(phi**2)))


def _restricted_likelihood(q: np.ndarray, errors: np.ndarray, phi: float, share: float) -> tuple[float, float]:
    """(log restricted likelihood up to a constant, variance of one error)."""
    n, p = q.shape
    gram, log_det = weighted_gram(np.column_stack([q, errors]), phi, share)
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
