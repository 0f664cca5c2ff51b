"""How much entropy a method still has when it has earned what the baseline earns in the end.

At the end of a run the methods differ in entropy and in reward at once. This holds the reward fixed.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """The baseline's at its end."""
    step: int | None
    """Where the running mean of the reward first is as high; None, as the next two, where it never is."""
    entropy: float | None
    """Running mean there."""
    entropy_ratio: float | None
    """To the baseline's at its end."""


def reached(run: RunRecords, baseline: RunRecords, end_value: Callable[[RunRecords, str], float]) -> Reached:
    """`end_value(run, metric)`: what a run ends with."""
    wanted = end_value(baseline, "reward_mean")
    steps, rewards = run.series("reward_mean")
    places = np.flatnonzero(smooth(rewards, WINDOW) >= wanted)
    if not places.size:
        return Reached(run.label, wanted, None, None, None)
    step = int(steps[places[0]])
    measured, entropies = run.series("entropy")
    entropy = float(np.interp(step, measured, smooth(entropies, WINDOW)))
    return Reached(run.label, wanted, step, entropy, entropy / end_value(baseline, "entropy"))
