"""What a reward curve is regressed on: exp(H), as the law has it, or one of its rivals.

Entropy falls and reward rises along the same steps, so a curve may fit R = -a exp(H) + b well and yet depend on time
alone. Each candidate, R = c0 + c1 g for g in exp(H), H, log H, step and log step, and each entropy one with the step as
a control, is fitted by maximum likelihood under the noise of `pyrl.analysis.noise` (white noise plus a first-order
autoregression), and compared by AICc (Hurvich and Tsai 1989). Dependent steps count for less there by themselves: every
candidate chooses its own noise, and a candidate that leaves a slow drift pays for the drift's two parameters. Noise is
taken as Gaussian, whatever the method of the law's own fit: outliers raise it, and tell fewer candidates apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pyrl.analysis.noise import noise_grid, weighted_gram

LAW = "exp(H)"
ENTROPY_FORMS = (LAW, "H", "log H")
TIME_FORMS = ("step", "log step")
CONTROLLED = " + step"
MARGIN = 4.0
"""Difference of AICc from which one candidate is said to be preferred to another (the likelihood ratio is then 7.4;
Burnham and Anderson 2002 call the support of the other one considerably less)."""
ROUNDING = 1e-14
"""Share of the total sum of squares below which a residual one is rounding: a fit without residual has this."""
FEWEST_STEPS = 9
"""AICc of the candidate with most parameters (constant, two slopes, variance, two of noise) needs n - 7 > 0; one more
to be stable."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One fitted regression of reward."""

    name: str
    """`exp(H)`, `H`, `log H`, `step`, `log step`; ` + step` where the step is a control."""
    aicc: float
    behind: float
    """AICc minus that of the best candidate; the best has 0."""
    weight: float
    """Akaike weight: share of exp(-behind / 2) in all candidates' sum."""
    slope: float
    """Of the first regressor: reward per unit of it (exp(H), nats, log nats, step, log step)."""
    phi: float
    """Memory of the noise's drift a step, and its share of the noise's variance; 0 for white noise."""
    share: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """All candidates, best first."""

    candidates: tuple[Candidate, ...]

    @property
    def preferred(self) -> Candidate:
        return self.candidates[0]

    def lead(self, rivals: Sequence[str]) -> float:
        """AICc by which exp(H) is ahead of the best of `rivals`; negative where it is behind."""
        return min(self.of(name).aicc for name in rivals if self.has(name)) - self.of(LAW).aicc

    def has(self, name: str) -> bool:
        """`log H` is absent where some entropy is not positive."""
        return any(candidate.name == name for candidate in self.candidates)

    def of(self, name: str) -> Candidate:
        return next(candidate for candidate in self.candidates if candidate.name == name)


def compare_regressors(steps: ArrayLike, entropy: ArrayLike, reward: ArrayLike) -> Comparison | None:
    """Compare the candidates on finite values in the order of the steps, each [n]; None for too few steps or
    constant reward.

    `steps`: the steps' numbers, increasing; log step is of the number since the first, which counts as 1.
    """
    steps, h, y = (np.asarray(values, dtype=np.float64) for values in (steps, entropy, reward))
    if y.size < FEWEST_STEPS or np.ptp(y) == 0:
        return None
    columns = _regressors(steps, h)
    names = list(columns)
    scale = {name: (column.mean(), column.std()) for name, column in columns.items()}
    unit = [(columns[name] - scale[name][0]) / scale[name][1] for name in names]
    data = np.column_stack([np.ones_like(y), *unit, y - y.mean()])
    grid = noise_grid(y.size)
    grams, log_det = (np.array(part) for part in zip(*(weighted_gram(data, *noise) for noise in grid), strict=True))
    fits = {}
    for name, parts in _candidates(names).items():
        aicc, slope = _fit(grams, log_det, [0, *(names.index(part) + 1 for part in parts)], y.size)
        fits[name] = float(aicc.min()), float(slope[aicc.argmin()]), *grid[aicc.argmin()]
    best = min(fit[0] for fit in fits.values())
    support = {name: float(np.exp((best - fit[0]) / 2)) for name, fit in fits.items()}
    found = [
        Candidate(name, aicc, aicc - best, support[name] / sum(support.values()),
                  float(slope / scale[_candidates(names)[name][0]][1]), phi, share)
        for name, (aicc, slope, phi, share) in fits.items()
    ]  # fmt: skip
    return Comparison(tuple(sorted(found, key=lambda candidate: candidate.aicc)))


def _regressors(steps: np.ndarray, h: np.ndarray) -> dict[str, np.ndarray]:
    columns = {LAW: np.exp(h), "H": h, "step": steps, "log step": np.log(steps - steps[0] + 1)}
    return columns | ({"log H": np.log(h)} if h.min() > 0 else {})


def _candidates(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Name -> its regressors."""
    alone = {name: (name,) for name in names}
    return alone | {name + CONTROLLED: (name, "step") for name in names if name in ENTROPY_FORMS}


def _fit(grams: np.ndarray, log_det: np.ndarray, own: list[int], n: int) -> tuple[np.ndarray, np.ndarray]:
    """(AICc [g], slope [g]) of regressing the last column on the columns `own` under each of g noise models, white
    noise first: `grams` [g, k, k] and `log_det` [g] as `weighted_gram` gives them."""
    xx, xy, yy = grams[:, own][:, :, own], grams[:, own, -1], grams[:, -1, -1]
    # a control may be a multiple of the regressor, entropy that falls in a line: then the inverse is a pseudo-inverse
    coefficients = np.einsum("gij,gj->gi", np.linalg.pinv(xx, rcond=ROUNDING, hermitian=True), xy)
    squares = np.maximum(yy - (xy * coefficients).sum(1), ROUNDING * yy)
    k = np.full(len(grams), len(own) + 3)
    k[0] -= 2  # white noise has no memory and no share
    aicc = n * np.log(2 * np.pi * squares / n) + n + log_det + 2 * k + 2 * k * (k + 1) / (n - k - 1)
    return aicc, coefficients[:, 1]
