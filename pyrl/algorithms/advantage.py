"""Advantages: one number a completion, from the rewards of its group."""

from __future__ import annotations

import statistics
from collections.abc import Callable

EPSILON = 1e-6


def grpo(rewards: list[float | None]) -> list[float | None]:
    """A_i = (R_i - mean R) / (std R + 1e-6) over the judged completions of a group; std with ddof 1.

    Source: GRPO (arXiv 2402.03300), as the Entropy Mechanism's code computes it. None (could not be judged) stays None
    and takes no part; fewer than two judged, or all equal, gives 0.
    """
    judged = [r for r in rewards if r is not None]
    if len(judged) < 2 or min(judged) == max(judged):
        return [None if r is None else 0.0 for r in rewards]
    mean, deviation = statistics.fmean(judged), statistics.stdev(judged)
    return [None if r is None else (r - mean) / (deviation + EPSILON) for r in rewards]


ADVANTAGES: dict[str, Callable[[list[float | None]], list[float | None]]] = {"grpo": grpo}
"""By `algorithm.advantage`."""
