"""Measured entropy change against the covariance: slope through the origin, correlation, lag."""

import numpy as np
import pytest

from pyrl.analysis.entropy_dynamics import MEASURED, PREDICTORS, fit_dynamics, measured_pairs, run_dynamics
from tests.analysis.curves import ar1


def test_slope_is_the_effective_learning_rate() -> None:
    rng = np.random.default_rng(0)
    covariance = 0.01 + 0.005 * rng.standard_normal(150)
    hits = 0
    for _ in range(200):
        fit = fit_dynamics("c", covariance, -2.5 * covariance + 0.01 * ar1(150, 0.6, rng))
        hits += fit.slope_low <= 2.5 <= fit.slope_high
    assert 0.9 <= hits / 200 <= 0.99
    exact = fit_dynamics("c", covariance, -2.5 * covariance)
    assert (exact.slope, exact.slope_se, exact.correlation) == pytest.approx((2.5, 0, 1), abs=1e-12)


def test_slope_passes_through_the_origin() -> None:
    covariance = np.linspace(0.01, 0.02, 20)
    fit = fit_dynamics("c", covariance, -covariance - 0.1)
    assert fit.slope == pytest.approx((covariance @ (covariance + 0.1)) / (covariance @ covariance))
    assert fit.correlation == pytest.approx(1)


def test_lag_tells_a_shared_trend_from_agreement_step_by_step() -> None:
    rng = np.random.default_rng(1)
    trend, own = np.linspace(1, 0, 300), rng.standard_normal(300)
    stepwise = fit_dynamics("c", own, -own - 0.3 * rng.standard_normal(300))
    assert stepwise.correlation > 0.9 > 0.2 > abs(stepwise.lag1_correlation)
    trending = fit_dynamics("c", trend, -trend - 0.1 * rng.standard_normal(300))
    assert trending.lag1_correlation == pytest.approx(trending.correlation, abs=0.03)
    # the covariance of a step with the change of the next one, not the reverse
    shifted = fit_dynamics("c", own, -np.concatenate([[0.0], own[:-1]]))
    assert shifted.lag1_correlation == pytest.approx(1) and abs(shifted.correlation) < 0.2


def test_rows_are_read_where_both_are_measured() -> None:
    rows = [{"step": s, MEASURED: -0.01 * s if s % 2 else None, "cov_token_logp_adv": 0.02 * s} for s in range(1, 21)]
    rows[2]["cov_token_logp_adv"] = None
    steps, covariance, change = measured_pairs(rows, "cov_token_logp_adv")
    assert steps.tolist() == [1, 5, 7, 9, 11, 13, 15, 17, 19]
    assert change == pytest.approx(-covariance / 2)
    fits, problems = run_dynamics(rows)
    assert [fit.predictor for fit in fits] == ["cov_token_logp_adv"] and problems == []
    assert fits[0].slope == pytest.approx(0.5) and fits[0].n == 9


def test_what_cannot_be_fitted_is_said() -> None:
    names = list(PREDICTORS)
    rows = [{"step": s, MEASURED: -0.1 * s, names[0]: 0.0, names[1]: 0.1 if s < 3 else None} for s in range(10)]
    fits, problems = run_dynamics(rows)
    assert fits == [] and "0 in all 10 steps" in problems[0] and f"{names[1]}: 3 steps" in problems[1]
    assert run_dynamics([{"step": 1, "entropy": 0.5}]) == ([], [])


def test_a_constant_has_no_correlation() -> None:
    fit = fit_dynamics("c", np.full(10, 0.1), -0.2 * np.ones(10))
    assert fit.correlation is None and fit.lag1_correlation is None and fit.slope == pytest.approx(2)
