"""The law of arXiv 2505.22617, eq. 6: R = -a exp(H) + b, fitted to one training curve, and what it predicts.

The law is linear in exp(H), so a and b come from a linear fit; their errors account for steps that depend on one
another (`pyrl.analysis.noise`). The ceiling is what the law says of zero entropy: R = b - a.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from pyrl.analysis.noise import NoiseModel, errors_covariance, white_covariance

Method = Literal["ols", "huber"]
Covariance = Literal["hac", "iid"]

MINIMUM_PAIRS = 5
START_PAIRS = 5
"""Pairs whose mean exp(H) is the policy's start, from which the reachable gain is counted."""
LARGEST_ENTROPY = 100.0
"""Nats a token: the logarithm of a vocabulary far beyond any; more is another quantity or another unit."""
HUBER_TUNING = 1.345
"""Residuals beyond so many standard deviations count linearly; 95% efficient when noise is normal."""
HUBER_ROUNDS = 200


class Band(NamedTuple):
    """A prediction and the interval around it, each of the shape of the entropy it was asked for."""

    reward: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Budget(NamedTuple):
    """How far a policy has gone on the way the law predicts."""

    spent: float | None
    """Share of the reachable gain R(0) - R(start): (e^Hstart - e^H) / (e^Hstart - 1). Negative when entropy is above
    its start. None when the law has no gain to reach: a is not positive, or the start had no entropy."""
    reward_left: float | None
    """a (e^H - 1): what the law still promises. None as `spent`."""
    ceiling: float
    ceiling_low: float
    ceiling_high: float
    """95% confidence interval of the ceiling, of the mean reward, not of one noisy step."""


@dataclass(frozen=True, slots=True)
class EntropyLaw:
    """A fitted R = -a exp(H) + b."""

    a: float
    b: float
    a_se: float
    b_se: float
    ceiling: float
    """b - a, the mean reward at zero entropy."""
    ceiling_se: float
    r2: float | None
    """1 - residual / total sum of squares; None when every reward is equal."""
    rmse: float
    """Root mean square of the residuals, in units of reward."""
    n: int
    n_dropped: int
    """Pairs left out because one of the two is NaN or infinite."""
    covariance: np.ndarray
    """Of (a, b), [2, 2]."""
    noise_sd: float
    """Standard deviation of one step's reward around the law, by n - 2 degrees of freedom."""
    start_entropy: float
    """log of the mean exp(H) over the first pairs."""
    entropy_range: tuple[float, float]
    noise: NoiseModel | None
    """None with cov="iid"."""

    @property
    def degrees_of_freedom(self) -> int:
        return self.n - 2

    def predict(self, entropy: ArrayLike, interval: float | None = None) -> np.ndarray | Band:
        """Reward at `entropy` (nats), of its shape; with `interval`, e.g. 0.95, a `Band` around one new step's reward.

        The band holds the uncertainty of a and b and the scatter of a step, not a departure from the law.
        """
        x = np.exp(np.asarray(entropy, dtype=np.float64))
        reward = self.b - self.a * x
        if interval is None:
            return reward
        return self._band(x, reward, interval, self.noise_sd**2)

    def confidence_band(self, entropy: ArrayLike, interval: float = 0.95) -> Band:
        """Interval of the curve itself: where the mean reward lies."""
        x = np.exp(np.asarray(entropy, dtype=np.float64))
        return self._band(x, self.b - self.a * x, interval, 0.0)

    def interval(self, name: Literal["a", "b", "ceiling"], confidence: float = 0.95) -> tuple[float, float]:
        """Confidence interval of a coefficient, by Student's t."""
        centre, half = getattr(self, name), self._quantile(confidence) * getattr(self, f"{name}_se")
        return centre - half, centre + half

    def _band(self, x: np.ndarray, reward: np.ndarray, interval: float, extra: float) -> Band:
        v = self.covariance
        variance = np.maximum(v[0, 0] * x * x - 2 * v[0, 1] * x + v[1, 1], 0.0) + extra
        half = self._quantile(interval) * np.sqrt(variance)
        return Band(reward, reward - half, reward + half)

    def _quantile(self, confidence: float) -> float:
        if not 0 < confidence < 1:
            raise ValueError(f"interval {confidence}: a confidence is a fraction between 0 and 1, e.g. 0.95")
        return float(stats.t.ppf(0.5 + confidence / 2, self.degrees_of_freedom))


@dataclass(frozen=True, slots=True)
class LinearFit:
    """Coefficients of y ~ X, their covariance and the residuals."""

    coefficients: np.ndarray
    covariance: np.ndarray
    residuals: np.ndarray
    noise: NoiseModel | None


def fit_entropy_law(
    entropy: ArrayLike, reward: ArrayLike, *, method: Method = "ols", cov: Covariance = "hac"
) -> EntropyLaw:
    """Fit R = -a exp(H) + b to pairs in the order of the steps.

    `method`: "ols", or "huber" where some rewards are outliers, such as steps in which grading failed. `cov`: "hac"
    for errors that depend on one another and vary in size, "iid" for the textbook formula. Pairs with a value that is
    not finite are dropped and counted. ValueError: fewer than 5 finite pairs, constant entropy, entropy that is not in
    nats a token.
    """
    pairs, n_dropped = finite_pairs(entropy, reward)
    h, y = pairs
    _check_entropy(h)
    x = np.exp(h)
    fit = linear_fit(np.column_stack([-x, np.ones_like(x)]), y, method=method, cov=cov)
    (a, b), v = fit.coefficients, fit.covariance
    squares = float(fit.residuals @ fit.residuals)
    total = float(((y - y.mean()) ** 2).sum())
    return EntropyLaw(
        a=float(a), b=float(b), a_se=float(np.sqrt(v[0, 0])), b_se=float(np.sqrt(v[1, 1])), ceiling=float(b - a),
        ceiling_se=float(np.sqrt(max(v[0, 0] + v[1, 1] - 2 * v[0, 1], 0.0))),
        r2=1 - squares / total if np.ptp(y) > 0 else None, rmse=float(np.sqrt(squares / y.size)), n=int(y.size),
        n_dropped=n_dropped, covariance=v, noise_sd=residual_sd(fit.residuals, method),
        start_entropy=float(np.log(x[:START_PAIRS].mean())), entropy_range=(float(h.min()), float(h.max())),
        noise=fit.noise,
    )  # fmt: skip


def budget_left(law: EntropyLaw, entropy: float) -> Budget:
    """What is left for a policy that now has `entropy`, by a law fitted to its run so far."""
    start, now = np.exp(law.start_entropy), np.exp(float(entropy))
    defined = law.a > 0 and start > 1
    return Budget(
        float((start - now) / (start - 1)) if defined else None,
        float(law.a * (now - 1)) if defined else None,
        law.ceiling,
        *law.interval("ceiling"),
    )


def linear_fit(x: np.ndarray, y: np.ndarray, *, method: Method = "ols", cov: Covariance = "hac") -> LinearFit:
    """Least squares or Huber's M-estimate of y [n] on the columns of x [n, p], rows in the order of the steps."""
    if cov not in ("hac", "iid"):
        raise ValueError(f"cov {cov!r}: not one of 'hac', 'iid'")
    if method not in ("ols", "huber"):
        raise ValueError(f"method {method!r}: not one of 'ols', 'huber'")
    q, r = np.linalg.qr(x)
    coefficients = np.linalg.solve(r, q.T @ y)
    residuals = _exact_zero(y - x @ coefficients, y)
    influence, back = residuals, np.linalg.inv(r)
    if method == "huber" and residuals.any():
        coefficients = np.linalg.solve(r, _huber(q, y))
        residuals = _exact_zero(y - x @ coefficients, y)
        influence, slope = _huber_influence(residuals)
        back = back @ np.linalg.inv((q * slope[:, None]).T @ q)
    middle, noise = errors_covariance(q, influence) if cov == "hac" else (white_covariance(q, influence), None)
    return LinearFit(coefficients, back @ middle @ back.T, residuals, noise)


def finite_pairs(*series: ArrayLike) -> tuple[list[np.ndarray], int]:
    """(each series where all are finite, how many positions were dropped); 1-d, of equal length, else ValueError."""
    arrays = [np.asarray(_numbers(values), dtype=np.float64) for values in series]
    if any(array.ndim != 1 or array.shape != arrays[0].shape for array in arrays):
        raise ValueError(f"series of shapes {[array.shape for array in arrays]}: want 1-d and of equal length")
    finite = np.all(np.isfinite(arrays), axis=0)
    return [array[finite] for array in arrays], int((~finite).sum())


def _numbers(values: ArrayLike) -> ArrayLike:
    """A record's null is as good as NaN."""
    return [np.nan if v is None else v for v in values] if isinstance(values, Sequence) else values


def _check_entropy(h: np.ndarray) -> None:
    if h.size < MINIMUM_PAIRS:
        raise ValueError(f"{h.size} finite pairs of entropy and reward: a law needs at least {MINIMUM_PAIRS}")
    if np.ptp(h) <= 1e-9 * max(1.0, float(np.abs(h).max())):
        raise ValueError(f"entropy is constant ({h[0]:.6g} in all {h.size} finite pairs): no law can be fitted to it")
    if np.abs(h).max() > LARGEST_ENTROPY:
        raise ValueError(f"entropy {h[np.abs(h).argmax()]:.6g}: want nats a token, at most the log of the vocabulary")


def _exact_zero(residuals: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Residuals that are rounding alone are 0: a noise model fitted to rounding would be meaningless."""
    return np.zeros_like(residuals) if np.abs(residuals).max() <= 1e-13 * np.abs(y).max() else residuals


def _scale(residuals: np.ndarray) -> float:
    """Standard deviation by the median of absolute residuals, which a half of outliers cannot move."""
    return 1.4826 * float(np.median(np.abs(residuals)))


def residual_sd(residuals: np.ndarray, method: Method) -> float:
    """Standard deviation of one step's reward around a fit of two coefficients."""
    n = residuals.size
    robust = _scale(residuals) * np.sqrt(n / (n - 2)) if method == "huber" else 0.0
    return float(robust or np.sqrt(residuals @ residuals / (n - 2)))


def _huber(q: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Huber's estimate on orthonormal regressors, by reweighting from the least absolute residuals."""
    coefficients = q.T @ y
    for absolute in (True, False):
        for _ in range(HUBER_ROUNDS):
            residuals = np.abs(y - q @ coefficients)
            limit = HUBER_TUNING * _scale(residuals) * (1e-3 if absolute else 1.0)
            if limit == 0:
                return coefficients
            weight = np.minimum(1.0, limit / np.maximum(residuals, limit))
            step = np.linalg.solve((q * weight[:, None]).T @ q, q.T @ (weight * y)) - coefficients
            coefficients = coefficients + step
            if np.abs(step).max() <= 1e-12 * max(1.0, np.abs(coefficients).max()):
                break
    return coefficients


def _huber_influence(residuals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(psi(e), psi'(e)): the estimate's error is (q' diag(psi') q)^-1 q' psi, to first order."""
    limit = HUBER_TUNING * _scale(residuals)
    if limit == 0:
        return residuals, np.ones_like(residuals)
    return np.clip(residuals, -limit, limit), (np.abs(residuals) <= limit).astype(np.float64)
