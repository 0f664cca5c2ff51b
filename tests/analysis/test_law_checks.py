"""Verdicts on a curve, early prediction, one law for several runs, and the trend with model size."""

import math

import numpy as np
import pytest
from scipy import stats

from pyrl.analysis.entropy_law import fit_entropy_law
from pyrl.analysis.law_checks import check_law, groups_test, one_law_test, size_trend
from tests.analysis.curves import NOISE, A, B, ar1, entropy_curve, law_curve


def check(entropy, reward):
    return check_law(fit_entropy_law(entropy, reward), entropy, reward)


def test_curves_of_the_law_are_said_to_follow_it() -> None:
    """Under strong dependence fewer curves can be told from a trend in time."""
    for rho, fewest in ((0.0, 36), (0.8, 32)):
        rng = np.random.default_rng(0)
        verdicts = [check(*law_curve(150, rng, rho=rho)).verdict for _ in range(40)]
        assert verdicts.count("follows") >= fewest
        assert set(verdicts) <= {"follows", "trend in time", "another form"}


def test_a_curve_against_the_law_is_named_with_its_statistic() -> None:
    rng = np.random.default_rng(1)
    entropy = entropy_curve(150, rng)
    noise = NOISE * ar1(150, 0.5, rng)
    flat = check(entropy, 0.4 + noise)
    assert flat.verdict == "no slope" and flat.slope_p > 0.05 and f"p = {flat.slope_p:.2g}" in flat.reason
    against = check(entropy, 0.1 + 0.3 * np.exp(entropy) + noise)
    assert against.verdict == "reversed" and "t = -" in against.reason
    bent = check(entropy, 0.9 - 0.3 * np.exp(entropy) + 0.4 * (np.exp(entropy) - 1.5) ** 2 + noise)
    assert bent.verdict == "bent" and bent.bend_p < 0.01 and "quadratic term" in bent.reason


def test_a_bend_too_small_to_matter_is_no_departure() -> None:
    rng = np.random.default_rng(2)
    entropy = entropy_curve(3000, rng)
    bent = check(entropy, 0.9 - 0.3 * np.exp(entropy) + 0.03 * (np.exp(entropy) - 1.5) ** 2 + 0.002 * ar1(3000, 0, rng))
    assert bent.bend_p < 0.01 and bent.bend_share < 0.05 and bent.verdict == "follows"


def test_bend_is_not_tested_on_a_handful_of_steps() -> None:
    result = check(*law_curve(8, np.random.default_rng(3)))
    assert result.bend_t is None and result.bend_share is None


def laws_of(curves):
    return [fit_entropy_law(*curve) for curve in curves]


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_one_law_is_rejected_as_rarely_as_it_says(rho: float) -> None:
    rng = np.random.default_rng(6)
    p = []
    for _ in range(100):
        curves = [law_curve(120, rng, rho=rho) for _ in range(3)]
        p.append(one_law_test(laws_of(curves), curves).p)
    assert 1 <= sum(value < 0.1 for value in p) <= 20 and np.median(p) > 0.35


def test_two_laws_are_told_apart() -> None:
    rng = np.random.default_rng(7)
    curves = [law_curve(120, rng, rho=0.8), law_curve(120, rng, rho=0.8, b=B + 0.1)]
    test = one_law_test(laws_of(curves), curves)
    assert test.p < 1e-4 and test.rmse_shared > 1.5 * test.rmse_separate
    assert test.degrees_of_freedom == (2, 236)


def test_the_shared_law_is_the_precision_weighted_one() -> None:
    rng = np.random.default_rng(8)
    curves = [law_curve(100, rng), law_curve(200, rng)]
    laws = laws_of(curves)
    test = one_law_test(laws, curves)
    # by generalized least squares of all (a, b) on one pair
    points = np.concatenate([[law.a, law.b] for law in laws])
    design, weight = np.tile(np.eye(2), (2, 1)), np.zeros((4, 4))
    for i, law in enumerate(laws):
        weight[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = np.linalg.inv(law.covariance)
    shared = np.linalg.solve(design.T @ weight @ design, design.T @ weight @ points)
    assert (test.a, test.b) == pytest.approx(tuple(shared), rel=1e-9)
    distance = points - design @ shared
    assert test.statistic * 2 == pytest.approx(distance @ weight @ distance, rel=1e-6)
    assert test.a == pytest.approx(A, abs=0.02)


def test_one_law_needs_noise_and_two_runs() -> None:
    entropy = np.linspace(1, 0, 20)
    exact = fit_entropy_law(entropy, 0.9 - 0.3 * np.exp(entropy))
    with pytest.raises(ValueError, match="at least two runs"):
        one_law_test([exact], [(entropy, entropy)])
    with pytest.raises(ValueError, match="without any residual"):
        one_law_test([exact, exact], [(entropy, entropy)] * 2)


def run_law(rng: np.random.Generator, shift: float = 0.0):
    """A run whose seed moves its law by more than its own noise would."""
    return fit_entropy_law(*law_curve(60, rng, b=B + shift + 0.03 * rng.standard_normal()))


def test_groups_are_compared_by_the_spread_of_their_runs() -> None:
    rng = np.random.default_rng(9)
    p = [groups_test({g: [run_law(rng) for _ in range(3)] for g in "xyz"}).p for _ in range(40)]
    assert sum(value < 0.1 for value in p) <= 10 and 0.25 < np.median(p) < 0.75
    apart = groups_test({"x": [run_law(rng) for _ in range(4)], "y": [run_law(rng, 0.4) for _ in range(4)]})
    assert apart.p < 0.01 and apart.runs == 8 and apart.degrees_of_freedom == (2, 5)


def test_groups_statistic_is_hotellings_for_two_groups() -> None:
    """With two groups Wilks' F is Hotelling's two-sample T2, scaled."""
    rng = np.random.default_rng(10)
    groups = {"x": [run_law(rng) for _ in range(5)], "y": [run_law(rng, 0.1) for _ in range(4)]}
    test = groups_test(groups)
    x, y = (np.array([[law.a, law.b] for law in runs]) for runs in groups.values())
    pooled = (4 * np.cov(x.T) + 3 * np.cov(y.T)) / 7
    gap = x.mean(0) - y.mean(0)
    t2 = 5 * 4 / 9 * gap @ np.linalg.solve(pooled, gap)
    statistic = t2 * (9 - 2 - 1) / (2 * 7)
    assert test.statistic == pytest.approx(statistic, rel=1e-8)
    assert test.p == pytest.approx(stats.f.sf(statistic, 2, 6), rel=1e-6)


def test_groups_need_replicates() -> None:
    rng = np.random.default_rng(11)
    with pytest.raises(ValueError, match="3 runs in 2 groups"):
        groups_test({"x": [run_law(rng)], "y": [run_law(rng), run_law(rng)]})
    same = run_law(rng)
    with pytest.raises(ValueError, match="no spread"):
        groups_test({"x": [same, same], "y": [run_law(rng)] * 2})


def test_trend_with_size_is_linear_in_the_logarithm() -> None:
    sizes = [0.5e9, 1.5e9, 3e9, 7e9, 32e9]
    trend = size_trend(sizes, [0.4 - 0.01 * math.log(n) for n in sizes])
    assert (trend.intercept, trend.slope, trend.r2) == pytest.approx((0.4, -0.01, 1.0))
    assert float(trend.predict(14e9)) == pytest.approx(0.4 - 0.01 * math.log(14e9))
    pair = size_trend(sizes[:2], [0.1, 0.2])
    assert pair.slope == pytest.approx(0.1 / math.log(3)) and pair.slope_se is None and pair.r2 is None
    with pytest.raises(ValueError, match="1 model size"):
        size_trend([1e9, 1e9], [0.1, 0.2])
