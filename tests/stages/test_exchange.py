"""Sequences travel from the leaders that generated them to the replicas that train on them, in real gloo processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist

from pyrl.stages.exchange import SequenceFacts, gather_from_leaders, gather_to_rank_zero, redistribute, share_of
from pyrl.types import Completion, Prompt
from tests.ops.gloo import run_on_ranks

COUNT = 9
PLANS = {
    "crossed": {i: 1 - i % 2 for i in range(COUNT)},
    "as they are": {i: int(i >= COUNT // 2) for i in range(COUNT)},
    "all to one": dict.fromkeys(range(COUNT), 1),
}


def sample(index: int) -> tuple[Prompt, Completion]:
    """Prompt and response of different lengths; ids up to 2^31 - 1, log-probs that fp32 rounds."""
    prompt = Prompt(str(index), tuple(2**31 - 1 - index - i for i in range(1 + index % 3)), "", "toy")
    length = 1 + (5 * index) % 7
    return prompt, Completion(tuple(range(length)), tuple(-0.1 * (index + i) for i in range(length)), "stop", ())


def facts_of(index: int, holder: int) -> SequenceFacts:
    prompt, completion = sample(index)
    return SequenceFacts(index, len(prompt.token_ids), len(completion.token_ids), index / 3, holder)


class Alone:
    """A world of one rank."""

    world_size = dp_size = 1
    dp_rank = rank = 0
    is_leader = True
    device = "cpu"


class TwoReplicasOfTwo(Alone):
    """Four ranks, laid out as `Parallel` says for tp 2 and pp 1."""

    world_size, dp_size = 4, 2

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.dp_rank, tp_rank = divmod(self.rank, 2)
        self.is_leader = tp_rank == 0
        self.cpu_group = dist.group.WORLD
        replicas = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        across = [dist.new_group([0, 2]), dist.new_group([1, 3])]
        self.model_parallel_group, self.dp_group = replicas[self.dp_rank], across[tp_rank]


def _exchange() -> dict[str, Any]:
    parallel = TwoReplicasOfTwo()
    own = share_of(list(range(COUNT)), parallel) if parallel.is_leader else []
    own_facts = [facts_of(i, parallel.dp_rank) for i in own]
    facts = gather_from_leaders(own_facts if parallel.is_leader else None, parallel)
    held = {i: sample(i) for i in own}
    return {
        "dp_rank": parallel.dp_rank,
        "facts": facts,
        "received": {name: redistribute(facts, receivers, held, parallel) for name, receivers in PLANS.items()},
        "at_zero": gather_to_rank_zero(parallel.rank, parallel),
    }


def test_every_rank_of_a_replica_gets_its_sequences_and_no_others() -> None:
    ranks = run_on_ranks(4, _exchange)
    assert sorted(rank["dp_rank"] for rank in ranks) == [0, 0, 1, 1]
    for rank in ranks:
        assert [f.sample_index for f in rank["facts"]] == list(range(COUNT))
        assert {f.holder for f in rank["facts"]} == {0, 1}
        for name, receivers in PLANS.items():
            received = rank["received"][name]
            assert received.keys() == {i for i, receiver in receivers.items() if receiver == rank["dp_rank"]}
            for index, sequence in received.items():
                prompt, completion = sample(index)
                assert sequence.sample_index == index and sequence.advantage == index / 3
                assert (sequence.prompt_ids, sequence.response_ids) == (prompt.token_ids, completion.token_ids)
                assert sequence.rollout_logprobs == pytest.approx(completion.rollout_logprobs, rel=6e-8)  # 2^-24
    assert [rank["at_zero"] for rank in ranks] == [[0, 1, 2, 3], None, None, None]


def test_a_sequence_that_does_not_fit_its_facts_is_refused() -> None:
    prompt, completion = sample(3)
    short = Completion(completion.token_ids, completion.rollout_logprobs[:-1], "stop", ())
    with pytest.raises(ValueError, match="sample 3: 3 tokens and 1 rollout_logprobs do not fit"):
        redistribute([facts_of(3, 0)], {3: 0}, {3: (prompt, short)}, Alone())
