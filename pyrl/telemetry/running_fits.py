"""What the records of a run so far say of its entropy: how well covariance predicts its change, and what reward the
law leaves to be had. Online sums, so a step costs the same however long the run; `pyrl analyze` makes the full fits,
with errors, afterwards. The pairs themselves are kept for the few full fits that a run makes of its own: when its
entropy is nearly spent (`pyrl.analysis.spent_entropy`).

    fits = RunningFits()
    record |= fits.add(record)          # once a step
    state["fits"] = fits.state_dict()   # what a resumed run goes on from, to the bit
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from pyrl.telemetry.names import ENTROPY_PREDICTORS

MIN_MEASUREMENTS = 5
"""Pairs behind a slope or a correlation."""
LAW_MIN_STEPS = 20
"""Steps behind a fit of the law; the paper predicts from 36."""
LAW_MIN_R2 = 0.5
"""Below it the law explains less of the reward than chance and time do: nothing is predicted from it."""
LAW_WINDOW = 5
"""Steps whose mean exp(entropy) is where the run started, or is now."""
NEARLY_SPENT = 0.1
"""Share of the budget from which on the law is looked at in full."""
LOOK_EVERY, LOOK_GROWTH = 10, 1.05
"""Steps between two full looks: at least the first, and so many that a long run takes few."""


@dataclass(slots=True)
class PairMoments:
    """Count, means and centred second moments of pairs (x, y), updated one at a time (Welford)."""

    n: int = 0
    mean_x: float = 0.0
    mean_y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    yy: float = 0.0

    def add(self, x: float, y: float) -> None:
        self.n += 1
        from_x, from_y = x - self.mean_x, y - self.mean_y
        self.mean_x += from_x / self.n
        self.mean_y += from_y / self.n
        self.xx += from_x * (x - self.mean_x)
        self.xy += from_x * (y - self.mean_y)
        self.yy += from_y * (y - self.mean_y)

    @property
    def varies(self) -> bool:
        """Whether neither x nor y is constant, but for rounding."""
        return self._spread(self.xx, self.mean_x) and self._spread(self.yy, self.mean_y)

    def slope_through_origin(self) -> float | None:
        """sum x y / sum x^2; None before `MIN_MEASUREMENTS` pairs, or where every x is 0."""
        squares = self.xx + self.n * self.mean_x**2
        if self.n < MIN_MEASUREMENTS or squares == 0:
            return None
        return (self.xy + self.n * self.mean_x * self.mean_y) / squares

    def correlation(self) -> float | None:
        """Pearson's; None before `MIN_MEASUREMENTS` pairs, or where x or y is constant."""
        if self.n < MIN_MEASUREMENTS or not self.varies:
            return None
        return max(-1.0, min(1.0, self.xy / math.sqrt(self.xx) / math.sqrt(self.yy)))

    def _spread(self, squares: float, mean: float) -> bool:
        return self.n > 1 and math.sqrt(squares / self.n) > 1e-12 * abs(mean)


@dataclass(slots=True)
class PredictorFit:
    """-dH against one covariance, at the same measured step and one measured step later."""

    same_step: PairMoments = field(default_factory=PairMoments)
    lagged: PairMoments = field(default_factory=PairMoments)
    last_covariance: float | None = None
    """Of the last measured step."""

    def add(self, covariance: float | None, change: float) -> None:
        if covariance is not None:
            self.same_step.add(covariance, -change)
        if self.last_covariance is not None:
            self.lagged.add(self.last_covariance, -change)
        self.last_covariance = covariance


@dataclass(slots=True)
class LawFit:
    """R = -a exp(H) + b (arXiv 2505.22617, eq. 6) by least squares: it is linear in x = exp(H)."""

    points: PairMoments = field(default_factory=PairMoments)
    """(exp H, R)"""
    first: list[float] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    """exp H of the first and of the last `LAW_WINDOW` steps."""
    steps: list[int] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    """Every pair, with its step."""

    def add(self, step: int, entropy: float, reward: float) -> None:
        x = math.exp(entropy)
        self.steps.append(step)
        self.entropy.append(entropy)
        self.reward.append(reward)
        self.points.add(x, reward)
        if len(self.first) < LAW_WINDOW:
            self.first.append(x)
        self.recent = [*self.recent, x][-LAW_WINDOW:]

    def metrics(self) -> dict[str, float | None]:
        """`entropy_law_*`, `entropy_budget_left` and `reward_ceiling_predicted`, null while the fit means nothing."""
        names = ("entropy_law_a", "entropy_law_b", "entropy_law_r2", "entropy_budget_left", "reward_ceiling_predicted")
        metrics: dict[str, float | None] = dict.fromkeys(names)
        points = self.points
        if points.n < LAW_MIN_STEPS or not points.varies:
            return metrics
        a = -points.xy / points.xx
        b = points.mean_y + a * points.mean_x
        r2 = min(1.0, points.xy / points.xx * (points.xy / points.yy))
        metrics |= {"entropy_law_a": a, "entropy_law_b": b, "entropy_law_r2": r2}
        reachable = fmean(self.first) - 1  # entropy 0 is exp H = 1
        if a > 0 and r2 >= LAW_MIN_R2 and reachable > 0:
            left = (fmean(self.recent) - 1) / reachable
            metrics |= {"entropy_budget_left": left, "reward_ceiling_predicted": b - a}
        return metrics


@dataclass(slots=True)
class RunningFits:
    """Over the steps of one run, from their records."""

    measurements: int = 0
    predictors: dict[str, PredictorFit] = field(
        default_factory=lambda: {name: PredictorFit() for name in ENTROPY_PREDICTORS}
    )
    law: LawFit = field(default_factory=LawFit)
    noticed: bool = False
    """Whether the run was told that its entropy is spent: it is once."""
    next_look: int = 0
    """Pairs from which on `is_nearly_spent` says yes again."""

    def add(self, record: dict[str, Any]) -> dict[str, Any]:
        """Take in a step's record; returns the fields that it adds. A prediction uses earlier steps alone."""
        change = record["entropy_change_measured"]
        metrics: dict[str, Any] = {}
        for name, fit in self.predictors.items():
            covariance, slope = record[f"cov_{name}"], fit.same_step.slope_through_origin()
            known = covariance is not None and slope is not None
            metrics[f"entropy_change_predicted_{name}"] = -slope * covariance if known else None
            if change is not None:
                fit.add(covariance, change)
            metrics[f"entropy_change_slope_{name}"] = fit.same_step.slope_through_origin()
            metrics[f"entropy_change_correlation_{name}"] = fit.same_step.correlation()
            metrics[f"entropy_change_lag1_correlation_{name}"] = fit.lagged.correlation()
        self.measurements += change is not None
        if record["entropy"] is not None and record["reward_mean"] is not None:
            self.law.add(record["step"], record["entropy"], record["reward_mean"])
        return metrics | {"entropy_change_measurements": self.measurements} | self.law.metrics()

    def is_nearly_spent(self, record: dict[str, Any]) -> bool:
        """Whether it is time for a full look at the law: `record` (with what `add` returned) says that the budget is
        nearly spent, the run was not told so yet, and the last look is some steps ago."""
        left, n = record["entropy_budget_left"], self.law.points.n
        if self.noticed or left is None or left > NEARLY_SPENT or n < self.next_look:
            return False
        self.next_look = max(n + LOOK_EVERY, math.ceil(LOOK_GROWTH * n))
        return True

    def state_dict(self) -> dict[str, Any]:
        """What JSON holds without loss."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.measurements = state["measurements"]
        self.noticed, self.next_look = state["noticed"], state["next_look"]
        self.predictors = {
            name: PredictorFit(PairMoments(**fit["same_step"]), PairMoments(**fit["lagged"]), fit["last_covariance"])
            for name, fit in state["predictors"].items()
        }
        law = state["law"]
        self.law = LawFit(**law | {"points": PairMoments(**law["points"])})
