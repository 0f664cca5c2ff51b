"""Advantages: one number a completion, from the rewards of the step's groups. Chosen by `algorithm.advantage`.

An estimator of one group takes the group's rewards. None, a completion that could not be judged, stays None and takes
no part; fewer than two judged, or all equal, gives 0: there is nothing to compare with. `whitened` adds a normalisation
over the whole batch. Every rank knows all rewards and lengths of the step, so no layout changes a bit of it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

EPSILON = 1e-6
WHITENING_EPSILON = 1e-8

Rewards = Sequence[float | None]
Advantages = list[float | None]


def grpo(rewards: Rewards) -> Advantages:
    """A_i = (R_i - mean R) / (std R + 1e-6), std with ddof 1.

    Source: GRPO (arXiv 2402.03300), as the Entropy Mechanism's code computes it.
    """
    judged = [r for r in rewards if r is not None]
    if _nothing_to_compare(judged):
        return [None if r is None else 0.0 for r in rewards]
    mean, deviation = statistics.fmean(judged), statistics.stdev(judged)
    return [None if r is None else (r - mean) / (deviation + EPSILON) for r in rewards]


def dr_grpo(rewards: Rewards) -> Advantages:
    """A_i = R_i - mean R: GRPO without the division, which weighs up prompts that are almost always or almost never
    solved. Source: Dr. GRPO (arXiv 2503.20783), whose loss is `loss_agg_mode: seq-mean-token-sum-norm`."""
    judged = [r for r in rewards if r is not None]
    if _nothing_to_compare(judged):
        return [None if r is None else 0.0 for r in rewards]
    mean = statistics.fmean(judged)
    return [None if r is None else r - mean for r in rewards]


def rloo(rewards: Rewards) -> Advantages:
    """A_i = R_i - mean of the other rewards of the group = n / (n - 1) (R_i - mean R), n judged ones.

    Source: RLOO (arXiv 2402.14740).
    """
    count = sum(r is not None for r in rewards)
    return [None if a is None else a * count / max(1, count - 1) for a in dr_grpo(rewards)]


def raw_reward(rewards: Rewards) -> Advantages:
    """A_i = R_i: no baseline but that of `whitened`."""
    return list(rewards)


def each_group(estimate: Callable[[Rewards], Advantages]) -> Estimator:
    """`estimate` on every group alone."""
    return lambda rewards, lengths: [estimate(group) for group in rewards]


def whitened(estimate: Callable[[Rewards], Advantages]) -> Estimator:
    """`estimate` on every group, then (A - mean) / sqrt(variance + 1e-8) over all judged response tokens of the batch.

    A token counts once, so a response weighs as its length; variance with N - 1, as verl does. REINFORCE++
    (arXiv 2501.03262): `raw_reward`, whitened. REINFORCE++-baseline: the reward less its group's mean, whitened. Both
    without the paper's KL in the reward: see docs/algorithms.md.
    """

    def over_the_batch(rewards: Sequence[Rewards], lengths: Sequence[Sequence[int]]) -> list[Advantages]:
        groups = [estimate(group) for group in rewards]
        judged = [
            (a, n)
            for group, sizes in zip(groups, lengths, strict=True)
            for a, n in zip(group, sizes, strict=True)
            if a is not None
        ]
        tokens = sum(n for _, n in judged)
        if tokens < 2 or _nothing_to_compare([a for a, _ in judged]):
            return [[None if a is None else 0.0 for a in group] for group in groups]
        mean = math.fsum(n * a for a, n in judged) / tokens
        variance = math.fsum(n * (a - mean) ** 2 for a, n in judged) / (tokens - 1)
        scale = 1.0 / math.sqrt(variance + WHITENING_EPSILON)
        return [[None if a is None else (a - mean) * scale for a in group] for group in groups]

    return over_the_batch


Estimator = Callable[[Sequence[Rewards], Sequence[Sequence[int]]], list[Advantages]]
"""(rewards, response lengths), both by group, of the whole step -> advantages by group."""

ADVANTAGES: dict[str, Estimator] = {
    "grpo": each_group(grpo),
    "dr_grpo": each_group(dr_grpo),
    "rloo": each_group(rloo),
    "reinforce_plus_plus": whitened(raw_reward),
    "reinforce_plus_plus_baseline": whitened(dr_grpo),
}
"""By `algorithm.advantage`."""


def _nothing_to_compare(judged: list[float]) -> bool:
    return len(judged) < 2 or min(judged) == max(judged)
