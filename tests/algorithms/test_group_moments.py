"""Group covariance and entropy against a literal float64 reference, for any partition; and against the theorems."""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import fmean

import numpy as np
import pytest
import torch

from pyrl.algorithms.group_moments import GroupMoments, group_moments
from pyrl.data.packing import pack
from pyrl.types import UID_POSITION_BITS, PackedBatch, Sequence, TokenScores
from tests.ops.simulated_ranks import SimulatedGroup

GROUPS, SAMPLES = 6, 4
GROUP_OF_SAMPLE = torch.arange(GROUPS * SAMPLES) // SAMPLES


def sequences() -> list[Sequence]:
    """Of 6 groups of 4; group 2 has lost one response and group 5 all but one."""
    g = torch.Generator().manual_seed(4)
    made = []
    for i in range(GROUPS * SAMPLES):
        prompt, response = (int(n) for n in torch.randint(1, 12, (2,), generator=g))
        made.append(Sequence(i, (1,) * prompt, (2,) * response, float(torch.randn((), generator=g))))
    return [s for s in made if s.sample_index not in (9, 21, 22, 23)]


def scores_of(batch: PackedBatch, later: bool = False) -> TokenScores:
    """Made from the token's uid alone; garbage where masked, which must not be read."""
    noise = torch.sin((batch.token_uids % 10_007).double() * (5.1 if later else 78.233))
    values = (-1.2 + noise).float(), (1.5 + noise * (0.9 if later else 1.0)).float()
    return TokenScores(*(v.masked_fill(~batch.response_mask, math.nan) for v in values))


def measured(batches: list[PackedBatch], group: object = None, after: bool = True) -> tuple[GroupMoments, GroupMoments]:
    later = [scores_of(b, later=True) for b in batches] if after else None
    return group_moments(batches, [scores_of(b) for b in batches], later, GROUP_OF_SAMPLE, GROUPS, dp_group=group)


def items() -> tuple[dict[int, list], dict[int, list]]:
    """Token and response items (log pi, A, H, H after) of each group, one by one in Python floats."""
    tokens: dict[int, list] = defaultdict(list)
    responses: dict[int, list] = defaultdict(list)
    for sequence in sequences():
        batch = pack([sequence])
        columns = scores_of(batch).logprobs, batch.advantages, scores_of(batch).entropy, scores_of(batch, True).entropy
        rows = [row for row, valid in zip(zip(*(c.tolist() for c in columns), strict=True),
                                          batch.response_mask.tolist(), strict=True) if valid]  # fmt: skip
        group = sequence.sample_index // SAMPLES
        tokens[group] += rows
        responses[group].append(tuple(fmean(column) for column in zip(*rows, strict=True)))
    return tokens, responses


def covariance(groups: dict[int, list], chosen: list[int], with_probability: bool) -> float:
    """Mean over the items of (log pi - mean)(x - mean), both means of the item's group."""
    products = []
    for group in chosen:
        if len(groups[group]) >= 2:
            logps = [row[0] for row in groups[group]]
            factors = [row[1] * (math.exp(row[0]) if with_probability else 1.0) for row in groups[group]]
            products += [(x - fmean(logps)) * (y - fmean(factors)) for x, y in zip(logps, factors, strict=True)]
    return fmean(products)


PARTITIONS = {"one micro-batch": [[(0, 20)]], "several": [[(0, 7), (7, 20), (20, 20)]],
              "three ranks": [[(0, 5), (5, 11)], [(11, 20)], [(20, 20)]]}  # fmt: skip
SUBSETS = [list(range(GROUPS)), [2], [0, 3, 5]]


@pytest.mark.parametrize("partition", PARTITIONS)
def test_equals_the_reference_for_any_partition(partition: str) -> None:
    """The cuts go through groups, so that their members lie on different ranks."""
    shuffled = [sequences()[i] for i in np.random.default_rng(0).permutation(20)]
    ranks = [[pack(shuffled[a:b], pad_multiple=4) for a, b in cuts] for cuts in PARTITIONS[partition]]
    found = SimulatedGroup(len(ranks)).run(lambda batches, group: measured(batches, group), [(r,) for r in ranks])
    of_tokens, of_responses = items()
    for moments in found:
        for got, wanted in zip(moments, (of_tokens, of_responses), strict=True):
            for subset in SUBSETS:
                mask = np.isin(np.arange(GROUPS), subset)
                rows = [row for group in subset for row in wanted[group]]
                assert got.entropy(mask) == pytest.approx(fmean(r[2] for r in rows), rel=1e-13)
                assert got.entropy_change(mask) == pytest.approx(fmean(r[3] - r[2] for r in rows), rel=1e-11)
                for with_probability in (False, True):
                    value = got.covariance(mask, with_probability=with_probability)
                    reference = covariance(wanted, subset, with_probability)
                    assert abs(reference) > 1e-3  # there is something to compare
                    assert value == pytest.approx(reference, rel=1e-11)


def test_what_is_not_there_is_undefined() -> None:
    alone = [s for s in sequences() if s.sample_index // SAMPLES == 5]
    tokens, responses = measured([pack(alone), pack([])], after=False)
    everywhere, first = np.ones(GROUPS, dtype=bool), np.arange(GROUPS) == 0
    assert responses.covariance(everywhere, with_probability=True) is None  # one response has no covariance
    assert tokens.covariance(everywhere, with_probability=True) is not None
    assert tokens.entropy(first) is None and tokens.entropy_change(first) is None
    assert tokens.entropy(everywhere) is not None and tokens.entropy_change(everywhere) is None  # not measured


def test_members_of_a_group_are_found_by_their_sample_index() -> None:
    batch = pack(sequences())
    counts = measured([batch])[1].sums[0]
    assert counts.tolist() == [4, 4, 3, 4, 4, 1]
    uids = batch.token_uids[batch.response_mask] >> UID_POSITION_BITS
    assert len(uids.unique()) == 20


@pytest.mark.parametrize(("with_probability", "level"), [(False, 0), (True, 0), (False, 1), (True, 1)])
def test_theorems_1_and_2_hold_to_first_order(with_probability: bool, level: int) -> None:
    """A tabular softmax over five actions, each a response of one token drawn exactly as often as its probability says.
    The step is z += eta A (natural gradient) or z += eta pi A (vanilla): dH = -eta Cov + O(eta^2)."""
    counts = [32, 16, 8, 6, 2]
    policy = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    advantage = torch.tensor([0.7, -1.0, 0.3, -0.4, 1.9], dtype=torch.float64)
    actions = [action for action, count in enumerate(counts) for _ in range(count)]
    batch = pack([Sequence(i, (1,), (a,), float(advantage[a])) for i, a in enumerate(actions)])
    logprobs = torch.zeros(len(batch.tokens))
    logprobs[batch.response_mask] = policy.log()[actions].float()
    entropy = TokenScores(logprobs, torch.zeros_like(logprobs))
    one_group = torch.zeros(len(actions), dtype=torch.int64)
    moments = group_moments([batch], [entropy], None, one_group, 1, dp_group=None)[level]
    cov = moments.covariance(np.array([True]), with_probability=with_probability)

    def change(eta: float) -> float:
        step = advantage * policy if with_probability else advantage
        after = (policy.log() + eta * step).softmax(-1)
        return float((policy * policy.log()).sum() - (after * after.log()).sum())

    assert abs(cov) > 1e-3
    errors = [abs(change(eta) / eta + cov) / abs(cov) for eta in (1e-2, 1e-3, 1e-4)]
    assert errors[2] < 1e-3 and errors[1] == pytest.approx(errors[0] / 10, rel=0.2)  # what is left is of second order
