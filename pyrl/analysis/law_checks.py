"""Does a curve follow the law, does one law serve several runs, and how do a and b change with model size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from pyrl.analysis.entropy_law import (
    MINIMUM_PAIRS,
    Covariance,
    EntropyLaw,
    Method,
    finite_pairs,
    linear_fit,
)
from pyrl.analysis.regressors import ENTROPY_FORMS, LAW, MARGIN, TIME_FORMS, Comparison, compare_regressors

Verdict = Literal["follows", "reversed", "no slope", "bent", "trend in time", "another form"]

SLOPE_P = 0.05
"""Two-sided level at which the slope a must differ from 0."""
BEND_P = 0.01
BEND_SHARE = 0.05
"""A bend counts from this share of the law's own rise: in a long run any departure becomes significant."""


@dataclass(frozen=True, slots=True)
class LawCheck:
    """Whether a curve follows its fitted law, with the statistics that say so."""

    verdict: Verdict
    reason: str
    slope_t: float
    slope_p: float
    bend_t: float | None
    """t of a quadratic term in exp(H) added to the law (a RESET test); None with too few pairs for it."""
    bend_p: float | None
    bend_share: float | None
    """Root mean square of that term over the steps, as a share of the law's rise |a| (max e^H - min e^H)."""
    rivals: Comparison | None = None
    """exp(H) against H, log H and the step; None with too few pairs for it."""


@dataclass(frozen=True, slots=True)
class OneLawTest:
    """Whether one (a, b) serves several runs."""

    a: float
    b: float
    a_se: float
    b_se: float
    statistic: float
    """F, from the Wald statistic of the runs' (a, b) around their precision-weighted mean."""
    degrees_of_freedom: tuple[int, int]
    p: float
    rmse_shared: float
    """Root mean square residual with the one law for all."""
    rmse_separate: float
    """The same with each run's own law."""


@dataclass(frozen=True, slots=True)
class GroupsTest:
    """Whether groups of runs (methods, say) differ by more than the runs of a group: Wilks' lambda on (a, b)."""

    groups: tuple[str, ...]
    runs: int
    wilks_lambda: float
    statistic: float
    degrees_of_freedom: tuple[int, int]
    p: float


@dataclass(frozen=True, slots=True)
class SizeTrend:
    """coefficient = intercept + slope ln(parameters)."""

    intercept: float
    slope: float
    slope_se: float | None
    """None with two sizes, which any line fits."""
    r2: float | None
    n: int

    def predict(self, parameters: ArrayLike) -> np.ndarray:
        return self.intercept + self.slope * np.log(np.asarray(parameters, dtype=np.float64))


def check_law(
    law: EntropyLaw, entropy: ArrayLike, reward: ArrayLike, *, steps: ArrayLike | None = None,
    method: Method = "ols", cov: Covariance = "hac",
) -> LawCheck:  # fmt: skip
    """Hold `law`, fitted to these pairs, against its slope's sign, a bend, a trend in time and other forms of entropy.

    `steps`: the numbers of the pairs' steps; without them 0, 1, 2, ...
    """
    (places, h, y), _ = finite_pairs(np.arange(len(entropy)) if steps is None else steps, entropy, reward)
    slope_t = law.a / law.a_se if law.a_se > 0 else np.copysign(np.inf, law.a)
    slope_p = float(2 * stats.t.sf(abs(slope_t), law.degrees_of_freedom))
    bend_t, bend_p, bend_share = _bend(law, h, y, method, cov)
    rivals = compare_regressors(places, h, y)
    slope = f"a = {law.a:.3g} +- {law.a_se:.2g} (t = {slope_t:.1f}, p = {slope_p:.2g})"
    if slope_p > SLOPE_P:
        verdict, reason = "no slope", f"reward does not change with exp(H): {slope}"
    elif law.a < 0:
        verdict, reason = "reversed", f"reward falls as entropy falls, against the law: {slope}"
    elif bend_p is not None and bend_p < BEND_P and bend_share > BEND_SHARE:
        verdict = "bent"
        reason = (f"reward is not linear in exp(H): a quadratic term has t = {bend_t:.1f}, p = {bend_p:.2g}, and moves "
                  f"the curve by {bend_share:.0%} of the law's rise")  # fmt: skip
    elif rivals is None and law.rmse > 0:
        verdict, reason = "trend in time", f"{h.size} steps are too few to compare exp(H) with the step"
    elif rivals is not None and rivals.lead(TIME_FORMS) < MARGIN:
        verdict, reason = "trend in time", f"{_rival_words(rivals, TIME_FORMS)}; {slope}"
    elif rivals is not None and rivals.lead(ENTROPY_FORMS) <= -MARGIN:
        verdict, reason = "another form", f"{_rival_words(rivals, ENTROPY_FORMS)}; {slope}"
    else:
        verdict, reason = "follows", slope + ("" if law.r2 is None else f", R2 = {law.r2:.3f}")
    return LawCheck(verdict, reason, float(slope_t), slope_p, bend_t, bend_p, bend_share, rivals)


def one_law_test(laws: Sequence[EntropyLaw], pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> OneLawTest:
    """Wald test that all runs share (a, b), by each run's own covariance; `pairs`: finite (entropy, reward) of each.

    ValueError: fewer than two laws, or one that fits without any residual.
    """
    if len(laws) < 2:
        raise ValueError(f"{len(laws)} law: a test of one law for all needs at least two runs")
    if any(law.rmse == 0 for law in laws):
        raise ValueError("a law fits its run without any residual: there is no noise to test against")
    precision = [np.linalg.inv(law.covariance) for law in laws]
    points = [np.array([law.a, law.b]) for law in laws]
    shared_cov = np.linalg.inv(sum(precision))
    shared = shared_cov @ sum(w @ point for w, point in zip(precision, points, strict=True))
    wald = sum((point - shared) @ w @ (point - shared) for w, point in zip(precision, points, strict=True))
    freedom = (2 * (len(laws) - 1), sum(law.degrees_of_freedom for law in laws))
    statistic = float(wald / freedom[0])
    own = [y - law.predict(h) for law, (h, y) in zip(laws, pairs, strict=True)]
    common = [y - (shared[1] - shared[0] * np.exp(h)) for h, y in pairs]
    return OneLawTest(
        float(shared[0]), float(shared[1]), *(float(s) for s in np.sqrt(np.diag(shared_cov))), statistic, freedom,
        float(stats.f.sf(statistic, *freedom)), _rms(np.concatenate(common)), _rms(np.concatenate(own)),
    )  # fmt: skip


def groups_test(laws: Mapping[str, Sequence[EntropyLaw]]) -> GroupsTest:
    """One-way multivariate analysis of variance of the runs' (a, b): a run is one observation.

    Unlike `one_law_test` it takes the spread of runs that differ in their seed alone for noise. ValueError: fewer than
    two groups, or fewer than two more runs than groups, or runs of a group that do not differ at all.
    """
    points = [np.array([[law.a, law.b] for law in group]) for group in laws.values()]
    n, groups = sum(len(p) for p in points), len(points)
    if groups < 2 or n - groups < 2:
        raise ValueError(f"{n} runs in {groups} groups: want two groups, and at least two more runs than groups")
    within = sum((p - p.mean(0)).T @ (p - p.mean(0)) for p in points)
    everything = np.concatenate(points)
    total = (everything - everything.mean(0)).T @ (everything - everything.mean(0))
    if np.linalg.det(within) <= 1e-12 * within[0, 0] * within[1, 1]:
        raise ValueError("the runs of a group do not differ from one another: there is no spread to test against")
    wilks = float(np.linalg.det(within) / np.linalg.det(total))
    # Rao's F, exact for two variables: of lambda for two groups (Hotelling's T2), of its root for more
    root, freedom = (wilks, (2, n - 3)) if groups == 2 else (np.sqrt(wilks), (2 * (groups - 1), 2 * (n - groups - 1)))
    statistic = (1 - root) / root * freedom[1] / freedom[0]
    return GroupsTest(tuple(laws), n, wilks, float(statistic), freedom, float(stats.f.sf(statistic, *freedom)))


def size_trend(parameters: Sequence[float], coefficients: Sequence[float]) -> SizeTrend:
    """Least-squares line of a or b over ln(parameters). ValueError: fewer than two different sizes."""
    x, y = np.log(np.asarray(parameters, dtype=np.float64)), np.asarray(coefficients, dtype=np.float64)
    if np.unique(x).size < 2:
        raise ValueError(f"{np.unique(x).size} model size: a trend needs at least two")
    if x.size == 2:
        slope = float((y[1] - y[0]) / (x[1] - x[0]))
        return SizeTrend(float(y[0] - slope * x[0]), slope, None, None, 2)
    line = stats.linregress(x, y)
    r2 = float(line.rvalue**2) if np.ptp(y) > 0 else None
    return SizeTrend(float(line.intercept), float(line.slope), float(line.stderr), r2, x.size)


def _bend(
    law: EntropyLaw, h: np.ndarray, y: np.ndarray, method: Method, cov: Covariance
) -> tuple[float | None, float | None, float | None]:
    """(t, p, share of the rise) of a quadratic term in exp(H)."""
    x = np.exp(h)
    unit = 2 * (x - x.min()) / np.ptp(x) - 1
    design = np.column_stack([np.ones_like(unit), unit, unit**2])
    if h.size <= 2 * MINIMUM_PAIRS or np.unique(unit).size < 4 or law.a == 0:
        return None, None, None
    fit = linear_fit(design, y, method=method, cov=cov)
    if not fit.residuals.any():
        return None, None, None
    beyond_line = unit**2 - np.polyval(np.polyfit(unit, unit**2, 1), unit)
    t = fit.coefficients[2] / np.sqrt(fit.covariance[2, 2])
    share = abs(fit.coefficients[2]) * _rms(beyond_line) / (abs(law.a) * np.ptp(x))
    return float(t), float(2 * stats.t.sf(abs(t), h.size - 3)), float(share)


def _rival_words(rivals: Comparison, names: Sequence[str]) -> str:
    """`log step explains the reward better than exp(H), by 12.3 of AICc`; of the best of `names`."""
    rival = next(c for c in rivals.candidates if c.name in names and c.name != LAW)
    lead = rivals.lead([rival.name])
    if lead >= 0:
        return f"exp(H) is ahead of {rival.name} by only {lead:.1f} of AICc, less than {MARGIN:g}"
    return f"{rival.name} explains the reward better than exp(H), by {-lead:.1f} of AICc"


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
