"""The fit of R = -a exp(H) + b: coefficients, errors that survive dependent steps, prediction and budget."""

import inspect
import math

import numpy as np
import pytest
from scipy import stats

from pyrl.analysis import EntropyLaw, budget_left, fit_entropy_law, noise
from pyrl.analysis.noise import errors_covariance
from tests.analysis.curves import NOISE, A, B, ar1, entropy_curve, law_curve

CURVES = 1000


def coverage(rho: float, n: int = 200) -> dict[str, float]:
    """Share of curves whose 95% interval holds the true value: by the standard error alone, and by Student's t."""
    truth = {"a": A, "b": B, "ceiling": B - A}
    rng = np.random.default_rng(7)
    hits = {f"{name} {kind}": 0 for name in truth for kind in ("z", "t")}
    for _ in range(CURVES):
        law = fit_entropy_law(*law_curve(n, rng, rho=rho))
        for name, value in truth.items():
            low, high = law.interval(name)
            hits[f"{name} t"] += low <= value <= high
            hits[f"{name} z"] += abs(getattr(law, name) - value) <= 1.959964 * getattr(law, f"{name}_se")
    return {name: count / CURVES for name, count in hits.items()}


def test_interval_covers_known_coefficients_under_white_noise() -> None:
    shares = coverage(rho=0.0)
    assert all(0.925 <= share <= 0.975 for share in shares.values()), shares


def test_interval_covers_known_coefficients_under_autocorrelated_noise() -> None:
    shares = coverage(rho=0.8)
    assert all(share >= 0.88 for share in shares.values()), shares
    assert all(share <= 0.99 for share in shares.values()), shares  # not by intervals that hold everything


def test_textbook_errors_fail_where_the_default_holds() -> None:
    rng = np.random.default_rng(1)
    hits = np.zeros(2)
    for _ in range(200):
        curve = law_curve(150, rng, rho=0.8)
        for i, cov in enumerate(("iid", "hac")):
            low, high = fit_entropy_law(*curve, cov=cov).interval("a")
            hits[i] += low <= A <= high
    assert hits[0] < 0.7 * 200 < 0.88 * 200 < hits[1]


def test_signature_is_the_contract() -> None:
    parameters = inspect.signature(fit_entropy_law).parameters
    assert list(parameters) == ["entropy", "reward", "method", "cov"]
    assert (parameters["method"].default, parameters["cov"].default) == ("ols", "hac")
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in ("method", "cov"))
    assert list(inspect.signature(EntropyLaw.predict).parameters) == ["self", "entropy", "interval"]


def test_least_squares_agrees_with_an_independent_regression() -> None:
    entropy, reward = law_curve(80, np.random.default_rng(2))
    law = fit_entropy_law(entropy, reward, cov="iid")
    line = stats.linregress(np.exp(entropy), reward)
    assert (law.a, law.b) == pytest.approx((-line.slope, line.intercept), rel=1e-10)
    assert (law.a_se, law.b_se) == pytest.approx((line.stderr, line.intercept_stderr), rel=1e-10)
    assert law.r2 == pytest.approx(line.rvalue**2, rel=1e-10)
    residuals = reward - line.intercept - line.slope * np.exp(entropy)
    assert law.rmse == pytest.approx(math.sqrt(np.mean(residuals**2)), rel=1e-10)
    # the ceiling is the intercept of the same line with exp(H) counted from 1
    shifted = stats.linregress(np.exp(entropy) - 1, reward)
    assert (law.ceiling, law.ceiling_se) == pytest.approx((shifted.intercept, shifted.intercept_stderr), rel=1e-9)
    assert fit_entropy_law(entropy, reward).a == law.a  # errors change, estimates do not


def test_likelihood_of_the_noise_is_that_of_the_dense_matrix() -> None:
    """The banded formulas against the covariance matrix written out, at every point of the grid."""
    rng = np.random.default_rng(3)
    n = 40
    q = np.linalg.qr(np.column_stack([np.exp(entropy_curve(n, rng)), np.ones(n)]))[0]
    errors = ar1(n, 0.5, rng)
    errors -= q @ (q.T @ errors)
    differences = []
    for phi, share in noise.noise_grid(n):
        c = share * phi ** np.abs(np.subtract.outer(np.arange(n), np.arange(n))) + (1 - share) * np.eye(n)
        w = np.linalg.inv(c)
        xx = q.T @ w @ q
        rss = errors @ w @ errors - errors @ w @ q @ np.linalg.solve(xx, q.T @ w @ errors)
        dense = -0.5 * ((n - 2) * np.log(rss / (n - 2)) + np.linalg.slogdet(c)[1] + np.linalg.slogdet(xx)[1])
        banded, variance = noise._restricted_likelihood(q, errors, phi, share)
        differences.append(banded - dense)
        assert variance == pytest.approx(rss / (n - 2), rel=1e-9)
        assert noise._ar_correlation_times(q, phi) == pytest.approx(c @ q if share == 1 else _ar(n, phi) @ q, abs=1e-12)
    assert np.ptp(differences) < 1e-8 and len(differences) > 10


def _ar(n: int, phi: float) -> np.ndarray:
    return phi ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)).astype(float))


def test_drift_under_sampling_noise_is_seen() -> None:
    """Sampling noise over a slow drift, which the first autocorrelation hardly shows."""
    rng = np.random.default_rng(4)
    n = 400
    q = np.linalg.qr(np.column_stack([np.linspace(0, 1, n), np.ones(n)]))[0]
    white = errors_covariance(q, rng.standard_normal(n))
    drift = errors_covariance(q, rng.standard_normal(n) + 0.7 * ar1(n, 0.95, rng))
    assert white[1].white_probability > 0.5 > 0.01 > drift[1].white_probability
    assert drift[1].phi >= 0.9 and 0 < drift[1].share < 1
    assert np.all(np.diag(drift[0]) > 5 * np.diag(white[0]))


def test_an_exact_curve_is_recovered_exactly() -> None:
    entropy = np.linspace(1.2, 0.1, 30)
    for method in ("ols", "huber"):
        law = fit_entropy_law(entropy, 0.9 - 0.25 * np.exp(entropy), method=method)
        assert (law.a, law.b, law.ceiling) == pytest.approx((0.25, 0.9, 0.65), abs=1e-12)
        assert law.a_se == law.b_se == law.rmse == law.noise_sd == 0.0 and law.r2 == 1.0


def test_huber_ignores_steps_in_which_grading_failed() -> None:
    rng = np.random.default_rng(5)
    entropy, reward = law_curve(200, rng)
    clean = fit_entropy_law(entropy, reward)
    reward[rng.choice(200, 20, replace=False)] = 0.0
    robust, plain = fit_entropy_law(entropy, reward, method="huber"), fit_entropy_law(entropy, reward)
    assert abs(robust.b - B) < 0.02 and abs(robust.a - A) < 0.02
    assert abs(plain.b - B) > 3 * abs(robust.b - B)
    assert robust.a_se < 2 * clean.a_se and robust.noise_sd < 2 * NOISE < plain.noise_sd


def test_huber_satisfies_its_estimating_equation() -> None:
    entropy, reward = law_curve(100, np.random.default_rng(6), rho=0.5)
    reward[::9] += 0.3
    law = fit_entropy_law(entropy, reward, method="huber")
    residuals = reward - law.predict(entropy)
    limit = 1.345 * 1.4826 * np.median(np.abs(residuals))
    psi = np.clip(residuals, -limit, limit)
    assert abs(psi.sum()) < 1e-6 and abs((psi * np.exp(entropy)).sum()) < 1e-6
    assert (np.abs(residuals) > limit).any()


def test_prediction_band_holds_new_steps() -> None:
    rng = np.random.default_rng(8)
    inside = []
    for _ in range(60):
        law = fit_entropy_law(*law_curve(150, rng))
        entropy, reward = law_curve(150, rng)
        band = law.predict(entropy, interval=0.9)
        inside.append(((band.low <= reward) & (reward <= band.high)).mean())
        assert np.all(law.confidence_band(entropy).high < law.predict(entropy, 0.95).high)
    assert 0.88 <= np.mean(inside) <= 0.92


def test_predict_keeps_the_shape() -> None:
    law = fit_entropy_law(*law_curve(50, np.random.default_rng(9)))
    assert float(law.predict(0.0)) == pytest.approx(law.ceiling)
    assert law.predict([[0.1, 0.2]]).shape == (1, 2)
    band = law.predict(0.3, interval=0.95)
    assert band.low < band.reward < band.high and band.reward == law.predict(0.3)
    for bad in (0, 1, 95, -0.1):
        with pytest.raises(ValueError, match="fraction between 0 and 1"):
            law.predict(0.3, interval=bad)


def test_unfinished_and_missing_values_are_dropped_and_counted() -> None:
    entropy, reward = law_curve(40, np.random.default_rng(10))
    whole = fit_entropy_law(entropy[3:], reward[3:])
    entropy[0], reward[1], reward[2] = np.nan, np.inf, np.nan
    law = fit_entropy_law(entropy, reward)
    assert (law.n, law.n_dropped, law.a, law.a_se) == (37, 3, whole.a, whole.a_se)
    nulls = fit_entropy_law([None, *entropy[1:]], [*reward[:2], None, *reward[3:]])
    assert nulls.a == law.a and nulls.n_dropped == 3


@pytest.mark.parametrize(
    ("entropy", "reward", "message"),
    [
        ([0.5, 0.4, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4], "4 finite pairs"),
        ([0.5, 0.4, 0.3, 0.2, np.nan, 0.1], [0.1, 0.2, 0.3, 0.4, 0.5, np.inf], "4 finite pairs"),
        ([], [], "0 finite pairs"),
        ([0.5] * 9, list(range(9)), "entropy is constant"),
        ([0.5, 0.4, 0.3], [0.1, 0.2], "equal length"),
        ([[0.5, 0.4]], [[0.1, 0.2]], "1-d"),
        ([1.0, 2.0, 3.0, 4.0, 500.0], [0.1] * 5, "nats a token"),
    ],
)
def test_what_cannot_be_fitted_is_refused(entropy: list, reward: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_entropy_law(entropy, reward)


def test_unknown_options_are_refused() -> None:
    curve = law_curve(10, np.random.default_rng(11))
    with pytest.raises(ValueError, match="method 'lad'"):
        fit_entropy_law(*curve, method="lad")
    with pytest.raises(ValueError, match="cov 'hc0'"):
        fit_entropy_law(*curve, cov="hc0")


def test_constant_reward_has_no_r2() -> None:
    law = fit_entropy_law(np.linspace(1, 0, 10), np.full(10, 0.5))
    assert (law.a, law.b) == pytest.approx((0, 0.5), abs=1e-12) and law.r2 is None


@pytest.mark.parametrize("n", [5, 6, 9, 14])
@pytest.mark.parametrize("method", ["ols", "huber"])
def test_short_curves_have_finite_errors(n: int, method: str) -> None:
    law = fit_entropy_law(*law_curve(n, np.random.default_rng(n)), method=method)
    assert all(math.isfinite(v) and v > 0 for v in (law.a_se, law.b_se, law.ceiling_se, law.rmse))


def test_budget_follows_the_law() -> None:
    entropy = np.linspace(1.0, 0.2, 50)
    law = fit_entropy_law(entropy, 0.9 - 0.25 * np.exp(entropy))
    start = math.exp(law.start_entropy)
    assert start == pytest.approx(np.exp(entropy[:5]).mean())
    now = budget_left(law, 0.2)
    reward_start, reward_now, ceiling = 0.9 - 0.25 * start, 0.9 - 0.25 * math.exp(0.2), 0.65
    assert now.spent == pytest.approx((reward_now - reward_start) / (ceiling - reward_start))
    assert now.reward_left == pytest.approx(ceiling - reward_now) and now.ceiling == pytest.approx(ceiling)
    assert budget_left(law, 0.0).spent == 1.0 and budget_left(law, law.start_entropy).spent == pytest.approx(0)
    assert budget_left(law, 1.5).spent < 0


def test_no_budget_without_a_gain_to_reach() -> None:
    entropy = np.linspace(1.0, 0.2, 50)
    reversed_law = fit_entropy_law(entropy, 0.1 + 0.25 * np.exp(entropy))
    assert budget_left(reversed_law, 0.2)[:2] == (None, None)
    noisy = fit_entropy_law(*law_curve(60, np.random.default_rng(12)))
    budget = budget_left(noisy, 0.1)
    assert budget.ceiling_low < budget.ceiling < budget.ceiling_high


def test_a_running_fit_is_the_fit_of_the_steps_so_far() -> None:
    entropy, reward = law_curve(60, np.random.default_rng(13))
    spent = [budget_left(fit_entropy_law(entropy[:i], reward[:i]), entropy[i - 1]).spent for i in range(20, 61, 10)]
    assert all(0 < share < 1 for share in spent) and spent[-1] > spent[0]
