"""Measured entropy change against what the covariance predicts (arXiv 2505.22617, section 3).

To first order -dH = eta Cov(log pi, pi A) under policy gradient (theorem 1) and eta Cov(log pi, A) under natural policy
gradient (theorem 2). The theory gives the shape; eta, the effective learning rate, is the slope through the origin and
is fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from pyrl.analysis.entropy_law import MINIMUM_PAIRS, finite_pairs, linear_fit

MEASURED = "entropy_change_measured"
"""H after a step's updates minus H before, on the same tokens."""
PREDICTORS = {
    "cov_response_logp_adv": "Cov(log pi, A), responses",
    "cov_response_logp_pi_adv": "Cov(log pi, pi A), responses",
    "cov_token_logp_adv": "Cov(log pi, A), tokens",
    "cov_token_logp_pi_adv": "Cov(log pi, pi A), tokens",
}


@dataclass(frozen=True, slots=True)
class Dynamics:
    """How one covariance tracks -dH over the steps of a run."""

    predictor: str
    n: int
    slope: float
    """-dH per unit of covariance, through the origin."""
    slope_se: float
    """Accounts for steps that depend on one another."""
    slope_low: float
    slope_high: float
    """95% confidence interval."""
    correlation: float | None
    """Pearson's, of the covariance and -dH of the same step; None where one of them is constant."""
    lag1_correlation: float | None
    """Of a step's covariance and -dH of the next measured step. As high as `correlation`: the two share a slow trend,
    and the step-to-step agreement that the theory claims is not shown."""


def fit_dynamics(predictor: str, covariance: ArrayLike, entropy_change: ArrayLike) -> Dynamics:
    """Fit -dH = eta Cov through the origin, pairs in the order of the steps.

    ValueError: fewer than 5 finite pairs, or a covariance that is 0 throughout.
    """
    (x, change), _ = finite_pairs(covariance, entropy_change)
    y = -change
    if x.size < MINIMUM_PAIRS:
        raise ValueError(f"{predictor}: {x.size} steps have it beside {MEASURED}, want at least {MINIMUM_PAIRS}")
    if not x.any():
        raise ValueError(f"{predictor}: 0 in all {x.size} steps, nothing can be predicted from it")
    fit = linear_fit(x[:, None], y)
    slope, se = float(fit.coefficients[0]), float(np.sqrt(fit.covariance[0, 0]))
    half = float(stats.t.ppf(0.975, x.size - 1)) * se
    return Dynamics(predictor, int(x.size), slope, se, slope - half, slope + half, correlation(x, y),
                    correlation(x[:-1], y[1:]))  # fmt: skip


def run_dynamics(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Dynamics], list[str]]:
    """(a fit for every predictor that the records hold, why others that they hold cannot be fitted)."""
    fits, problems = [], []
    for predictor in PREDICTORS:
        covariance, change = measured_pairs(rows, predictor)[1:]
        if not covariance.size:
            continue
        try:
            fits.append(fit_dynamics(predictor, covariance, change))
        except ValueError as error:
            problems.append(str(error))
    return fits, problems


def measured_pairs(rows: Sequence[Mapping[str, Any]], predictor: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(steps, covariance, dH) of the steps that have both."""
    both = [row for row in rows if row.get(predictor) is not None and row.get(MEASURED) is not None]
    columns = np.array([[row["step"], row[predictor], row[MEASURED]] for row in both], dtype=np.float64)
    steps, covariance, change = columns.reshape(-1, 3).T
    return steps, covariance, change


def correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's coefficient; None for fewer than 3 pairs or where one of the two is constant."""
    if x.size < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])
