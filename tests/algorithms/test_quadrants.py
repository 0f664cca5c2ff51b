"""Shares of covariance by quadrant, token by token."""

from __future__ import annotations

from statistics import fmean

import pytest
import torch

from pyrl import ops
from pyrl.algorithms.quadrants import covariance_quadrants
from pyrl.telemetry.names import COVARIANCE_QUADRANTS, covariance_quadrant_name
from tests.ops.simulated_ranks import SimulatedGroup


def tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(8)
    logprobs = -torch.empty(700).exponential_(generator=g)
    return logprobs, torch.randn(700, generator=g), torch.rand(700, generator=g) > 0.3


def shares(logprobs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, group: object) -> dict:
    covariance = ops.token_covariance(logprobs, advantages, mask, group=group)
    return covariance_quadrants(covariance, advantages, mask, group=group)


def reference() -> dict[str, float]:
    logprobs, advantages, mask = tokens()
    rows = [(x, a) for x, a, m in zip(logprobs.tolist(), advantages.tolist(), mask.tolist(), strict=True) if m]
    logp, adv = fmean(x for x, _ in rows), fmean(a for _, a in rows)
    sums = dict.fromkeys(COVARIANCE_QUADRANTS, 0.0)
    for x, a in rows:
        name = f"{'high' if x > logp else 'low'}_prob_{'high' if a > adv else 'low'}_adv"
        sums[name] += abs((x - logp) * (a - adv))
    return {covariance_quadrant_name(name): value / sum(sums.values()) for name, value in sums.items()}


@pytest.mark.parametrize("cuts", [(700,), (100, 250, 350), (0, 700)])
def test_shares_equal_the_reference_for_any_partition(cuts: tuple[int, ...]) -> None:
    parts = list(zip(*(t.split(list(cuts)) for t in tokens()), strict=True))
    for found in SimulatedGroup(len(cuts)).run(shares, parts):
        assert found == pytest.approx(reference(), rel=1e-6)  # of fp32 covariances
        assert sum(found.values()) == pytest.approx(1.0, abs=1e-12) and min(found.values()) > 0.05


def test_without_covariance_there_is_no_share() -> None:
    logprobs, _, mask = tokens()
    assert set(shares(logprobs, torch.ones(700), mask, None).values()) == {None}
    assert set(shares(logprobs, logprobs, torch.zeros_like(mask), None).values()) == {None}
