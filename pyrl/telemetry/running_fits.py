"""What the records of a run so far say of its entropy: how well covariance predicts its change, and what reward the
law leaves to be had. Online sums alone, so a step costs the same however long the run; `pyrl analyze` makes the full
fits, with errors, afterwards.

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
SPENT_ALARM = 0.9
"""Share of the reachable gain."""


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

    def add(self, entropy: float, reward: float) -> None:
        x = math.exp(entropy)
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
    alarmed: bool = False
    """Whether `alarm` has spoken: it does once a run."""

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
            self.law.add(record["entropy"], record["reward_mean"])
        return metrics | {"entropy_change_measurements": self.measurements} | self.law.metrics()

    def alarm(self, record: dict[str, Any]) -> str | None:
        """A warning for the log, once, when `record` (with what `add` returned) says that the gain is spent."""
        left = record["entropy_budget_left"]
        if self.alarmed or left is None or left > 1 - SPENT_ALARM:
            return None
        self.alarmed = True
        return (
            f"step {record['step']}: {100 * (1 - left):.0f}% of the reward gain that entropy can buy is spent. The law "
            f"R = -a exp(H) + b, fitted to {self.law.points.n} steps (R2 {record['entropy_law_r2']:.2f}), ends at "
            f"reward {record['reward_ceiling_predicted']:.3g} when entropy is 0; this step has reward "
            f"{record['reward_mean']:.3g} and entropy {record['entropy']:.3g} nats. More steps are unlikely to gain "
            "much: keep entropy up from the start with loss.name kl_cov or clip_cov"
        )

    def state_dict(self) -> dict[str, Any]:
        """What JSON holds without loss."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.measurements, self.alarmed = state["measurements"], state["alarmed"]
        self.predictors = {
            name: PredictorFit(PairMoments(**fit["same_step"]), PairMoments(**fit["lagged"]), fit["last_covariance"])
            for name, fit in state["predictors"].items()
        }
        law = state["law"]
        self.law = LawFit(PairMoments(**law["points"]), list(law["first"]), list(law["recent"]))
