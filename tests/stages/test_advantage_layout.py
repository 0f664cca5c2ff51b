"""What a replica trains on has the same advantages, to the bit, however many replicas there are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from pyrl.algorithms.advantage import ADVANTAGES
from pyrl.config import parse_config
from pyrl.stages.collect import Collected, GroupFacts
from pyrl.stages.exchange import gather_from_leaders, share_of
from pyrl.stages.improve import PolicyImprover
from pyrl.telemetry.timers import Timers
from tests.ops.gloo import run_on_ranks
from tests.stages.test_improve import Alone, ScriptedLearner, groups


class DataParallel(Alone):
    """Replicas of one rank each."""

    def __init__(self) -> None:
        self.world_size = self.dp_size = dist.get_world_size()
        self.rank = self.dp_rank = dist.get_rank()
        self.cpu_group = self.dp_group = dist.group.WORLD


def _advantages() -> dict[str, dict[int, float]]:
    """By estimator and token uid, of the tokens that this rank trains on."""
    parallel = DataParallel()
    own = share_of(groups(), parallel)
    facts = gather_from_leaders([GroupFacts.of(g, holder=parallel.dp_rank, kept=True) for g in own], parallel)
    collected = Collected()
    collected.add(own, facts, parallel.dp_rank)
    return {name: _of_estimator(name, collected, parallel) for name in ADVANTAGES}


def _of_estimator(name: str, collected: Collected, parallel: Any) -> dict[int, float]:
    config = parse_config({"model": {"path": "m"}, "data": {"path": "d"}, "algorithm": {"advantage": name}})
    improver = PolicyImprover(config, ScriptedLearner(), parallel, Timers())
    found: dict[int, float] = {}
    for batch in (batch for mini_batch in improver._mini_batches(collected) for batch in mini_batch):
        mask = batch.response_mask
        found |= dict(zip(batch.token_uids[mask].tolist(), batch.advantages[mask].tolist(), strict=True))
    return found


@pytest.fixture(scope="module")
def layouts() -> dict[int, list[dict[str, dict[int, float]]]]:
    return {dp: run_on_ranks(dp, _advantages) for dp in (1, 2)}


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_do_not_depend_on_the_number_of_replicas(layouts: dict[int, Any], name: str) -> None:
    (alone,), (first, second) = ([rank[name] for rank in layouts[dp]] for dp in (1, 2))
    assert first and second and not first.keys() & second.keys()
    assert first | second == alone
    if name.startswith("reinforce"):
        tokens = torch.tensor(list(alone.values()), dtype=torch.float64)
        assert abs(tokens.mean()) < 1e-6 and tokens.std() == pytest.approx(1, abs=1e-6)
        half = torch.tensor(list(first.values()), dtype=torch.float64)
        assert abs(half.mean()) > 1e-3  # a replica that whitened its own tokens would have 0 here
