"""Which regressor a curve prefers, on curves whose own is known."""

import numpy as np
import pytest
from scipy import stats

from pyrl.analysis.entropy_law import fit_entropy_law
from pyrl.analysis.law_checks import check_law
from pyrl.analysis.noise import noise_grid
from pyrl.analysis.regressors import FEWEST_STEPS, MARGIN, TIME_FORMS, compare_regressors
from tests.analysis.curves import NOISE, ar1, entropy_curve, law_curve


def trend_curve(n: int, rng: np.random.Generator, trend, rho: float = 0.0):
    """(entropy, reward) with reward a function of the step alone, on which entropy happens to fall."""
    return entropy_curve(n, rng), 0.2 + 0.3 * trend(np.arange(n) / n) + NOISE * ar1(n, rho, rng)


def dense_aicc(columns, y: np.ndarray) -> float:
    """The least AICc over the noise grid, by the multivariate normal's density with its matrix written out."""
    x, n, found = np.column_stack([np.ones_like(y), *columns]), y.size, []
    for phi, share in noise_grid(n):
        lags = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
        corr = share * phi**lags + (1 - share) * np.eye(n) if share else np.eye(n)
        inverse = np.linalg.inv(corr)
        residual = y - x @ np.linalg.solve(x.T @ inverse @ x, x.T @ inverse @ y)
        variance = residual @ inverse @ residual / n
        k = x.shape[1] + (3 if share else 1)
        likelihood = stats.multivariate_normal.logpdf(residual, cov=variance * corr)
        found.append(-2 * likelihood + 2 * k + 2 * k * (k + 1) / (n - k - 1))
    return min(found)


def test_aicc_is_that_of_the_dense_likelihood() -> None:
    entropy, reward = law_curve(40, np.random.default_rng(0), rho=0.8)
    steps = np.arange(10, 50)
    found = compare_regressors(steps, entropy, reward)
    columns = {"exp(H)": [np.exp(entropy)], "log H": [np.log(entropy)], "log step": [np.log(steps - 9)],
               "H + step": [entropy, steps]}  # fmt: skip
    for name, regressors in columns.items():
        assert found.of(name).aicc == pytest.approx(dense_aicc(regressors, reward), rel=1e-8)
    assert found.preferred.behind == 0 and sum(c.weight for c in found.candidates) == pytest.approx(1)
    assert [c.aicc for c in found.candidates] == sorted(c.aicc for c in found.candidates)


def test_the_slope_is_in_the_regressors_own_unit() -> None:
    rng = np.random.default_rng(1)
    entropy = entropy_curve(200, rng)
    reward = 0.8 - 0.4 * entropy + 0.0003 * np.arange(200) + 1e-4 * rng.standard_normal(200)
    found = compare_regressors(np.arange(200), entropy, reward)
    assert found.preferred.name == "H + step" and found.preferred.slope == pytest.approx(-0.4, rel=0.01)


@pytest.mark.parametrize("n", [36, 150])
def test_the_true_regressor_is_preferred(n: int) -> None:
    rng = np.random.default_rng(n)
    sharp = 0.005 * rng.standard_normal(n)
    entropy = entropy_curve(n, rng)
    curves = {
        "exp(H)": 0.9 - 0.3 * np.exp(entropy),
        "H": 0.9 - 0.5 * entropy,
        "log H": 0.3 - 0.1 * np.log(entropy),
        "step": 0.2 + 0.3 * np.arange(n) / n,
        "log step": 0.2 + 0.1 * np.log(np.arange(n) + 1),
    }
    for name, reward in curves.items():
        preferred = compare_regressors(np.arange(n), entropy, reward + sharp).preferred.name
        assert preferred.removesuffix(" + step") == name


@pytest.mark.parametrize("n", [15, 36])
@pytest.mark.parametrize("rho", [0.0, 0.8])
@pytest.mark.parametrize("trend", [lambda t: t, np.sqrt, lambda t: 1 - np.exp(-3 * t)], ids=["line", "root", "slow"])
def test_a_trend_in_time_is_rarely_said_to_follow_the_law(trend, rho: float, n: int) -> None:
    rng = np.random.default_rng(n)
    curves = [trend_curve(n, rng, trend, rho) for _ in range(30)]
    verdicts = [check_law(fit_entropy_law(*curve), *curve).verdict for curve in curves]
    assert verdicts.count("follows") <= 3


def test_the_verdict_names_the_better_form() -> None:
    rng = np.random.default_rng(3)
    entropy = entropy_curve(400, rng)
    reward = 0.9 - 0.5 * entropy + 0.01 * rng.standard_normal(400)
    law = fit_entropy_law(entropy, reward)
    rivals = compare_regressors(np.arange(400), entropy, reward)
    check = check_law(law, entropy, reward)
    assert check.rivals == rivals and rivals.lead(["H"]) < -MARGIN
    assert check.verdict in ("another form", "bent")
    timed = check_law(law, *trend_curve(400, rng, lambda t: np.log1p(400 * t) / 6))
    assert timed.verdict == "trend in time" and "log step explains the reward better than exp(H), by" in timed.reason


def test_numbers_of_the_steps_count() -> None:
    """A log with gaps: reward follows the step's number, not its place."""
    rng = np.random.default_rng(4)
    steps = np.concatenate([np.arange(40), np.arange(400, 440)])
    entropy = entropy_curve(80, rng)
    reward = 0.2 + 0.001 * steps + 0.005 * rng.standard_normal(80)
    numbered, placed = (compare_regressors(s, entropy, reward) for s in (steps, np.arange(80)))
    assert numbered.preferred.name == "step" and numbered.of("step").aicc < placed.of("step").aicc - 50


def test_what_cannot_be_compared() -> None:
    entropy, reward = law_curve(FEWEST_STEPS, np.random.default_rng(5))
    assert compare_regressors(np.arange(FEWEST_STEPS), entropy, reward) is not None
    assert compare_regressors(np.arange(8), entropy[:8], reward[:8]) is None
    assert compare_regressors(np.arange(FEWEST_STEPS), entropy, np.full(FEWEST_STEPS, 0.5)) is None
    short = check_law(fit_entropy_law(entropy[:8], reward[:8]), entropy[:8], reward[:8])
    assert short.verdict == "trend in time" and "8 steps are too few" in short.reason
    entropy[-1] = 0.0
    without = compare_regressors(np.arange(FEWEST_STEPS), entropy, reward)
    assert not without.has("log H") and without.has("H") and without.has("exp(H) + step")


def test_a_curve_without_noise_is_judged() -> None:
    """Residuals of rounding alone: the exact regressor is far ahead."""
    entropy = np.linspace(1, 0.1, 30)
    exact = check_law(fit_entropy_law(entropy, 0.9 - 0.3 * np.exp(entropy)), entropy, 0.9 - 0.3 * np.exp(entropy))
    assert exact.verdict == "follows" and exact.rivals.lead(TIME_FORMS) > 100
