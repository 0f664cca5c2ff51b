"""How much entropy a method still has when it has earned what the baseline earns in the end.

At the end of a run the methods differ in entropy and in reward at once. This holds the reward fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyrl.analysis.plots import smooth
from pyrl.analysis.records import RunRecords

WINDOW = 51
"""Steps of the centred running means: one step's reward is a few hundred samples, and the first of many noisy values to
pass a line passes it too early."""


@dataclass(frozen=True, slots=True)
class Reached:
    """Of one run, against the baseline run of equal seed."""

    run: str
    reward: float
    """The last value of the baseline's running mean."""
    step: int | None
    """Where the running mean of the reward first is as high; None, as the next two, where it never is."""
    entropy: float | None
    """Running mean there."""
    entropy_ratio: float | None
    """To the baseline's where its own running mean first is as high."""


def reached(run: RunRecords, baseline: RunRecords) -> Reached:
    """Both by their first passage: what a run ends with has had more steps to fall."""
    wanted = float(smooth(baseline.series("reward_mean")[1], WINDOW)[-1])
    step = _first_step(run, wanted)
    if step is None:
        return Reached(run.label, wanted, None, None, None)
    entropy = _entropy_at(run, step)
    return Reached(run.label, wanted, step, entropy, entropy / _entropy_at(baseline, _first_step(baseline, wanted)))


def _first_step(run: RunRecords, reward: float) -> int | None:
    steps, rewards = run.series("reward_mean")
    places = np.flatnonzero(smooth(rewards, WINDOW) >= reward)
    return int(steps[places[0]]) if places.size else None


def _entropy_at(run: RunRecords, step: int) -> float:
    measured, entropies = run.series("entropy")
    return float(np.interp(step, measured, smooth(entropies, WINDOW)))
