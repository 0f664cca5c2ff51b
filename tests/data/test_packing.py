"""Packing against a token-by-token reading of `PackedBatch`, and the promises of the micro-batch plan as properties."""

import math
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrl.data.packing import pack, plan_micro_batches, split_mini_batches
from pyrl.types import PackedBatch, Sequence

ids = st.lists(st.integers(0, 150_000), min_size=1, max_size=9).map(tuple)


@st.composite
def sequence_lists(draw):
    indices = draw(st.lists(st.integers(0, 2**39 - 1), max_size=8, unique=True))
    sequences = []
    for index in indices:
        response = draw(ids)
        known = st.sampled_from([-0.25, -0.5, -4.0])
        unknown = st.sampled_from([float("nan"), float("-inf"), float("inf")])
        logprobs = tuple(draw(st.one_of(known, known, known, unknown)) for _ in response)
        sequences.append(Sequence(index, draw(ids), response, draw(st.floats(-3, 3, width=32)), logprobs))
    return sequences


def literal(sequences, pad_multiple):
    """The definition of `PackedBatch`, one token at a time: (tokens, labels, positions, mask, advantages, uids, lp)."""
    rows = []
    for s in sequences:
        full = s.prompt_ids + s.response_ids
        for t, token in enumerate(full[:-1]):
            k = t + 1 - len(s.prompt_ids)  # place in the response of the token that position t predicts
            if k >= 0 and math.isfinite(s.rollout_logprobs[k]):
                uid = s.sample_index * 2**24 + k
                rows.append((token, s.response_ids[k], t, True, s.advantage, uid, s.rollout_logprobs[k]))
            else:
                rows.append((token, -100, t, False, 0.0, -1, 0.0))
    pad = 0
    while not rows or len(rows) % pad_multiple:
        rows.append((0, -100, pad, False, 0.0, -1, 0.0))
        pad += 1
    return list(zip(*rows, strict=True)), pad


@given(sequence_lists(), st.integers(1, 7))
@settings(deadline=None)
def test_pack_equals_its_definition_token_by_token(sequences, pad_multiple):
    batch = pack(sequences, pad_multiple=pad_multiple)
    (tokens, labels, positions, mask, advantages, uids, logprobs), padding = literal(sequences, pad_multiple)
    assert batch.tokens.tolist() == list(tokens)
    assert batch.labels.tolist() == list(labels)
    assert batch.position_ids.tolist() == list(positions)
    assert batch.response_mask.tolist() == list(mask)
    assert batch.token_uids.tolist() == list(uids)
    assert batch.advantages.tolist() == list(advantages)
    assert batch.rollout_logprobs.tolist() == list(logprobs)
    lengths = [len(s) - 1 for s in sequences] + ([padding] if padding else [])
    assert batch.cu_seqlens.diff().tolist() == lengths
    assert batch.cu_seqlens[0] == 0 and batch.cu_seqlens[-1] == len(tokens)
    assert batch.max_seqlen == max(lengths)
    assert batch.sample_indices == tuple(s.sample_index for s in sequences)


def test_pack_dtypes_are_those_of_the_contract():
    batch = pack([Sequence(3, (5, 6), (7,), 0.5, (-1.0,))], pad_multiple=4)
    for name, dtype in {
        "tokens": torch.int64, "labels": torch.int64, "position_ids": torch.int64, "cu_seqlens": torch.int32,
        "response_mask": torch.bool, "advantages": torch.float32, "token_uids": torch.int64,
        "rollout_logprobs": torch.float32,
    }.items():  # fmt: skip
        assert getattr(batch, name).dtype == dtype, name
    assert isinstance(batch.to("cpu"), PackedBatch)


def test_no_sequence_packs_to_one_padding_token():
    batch = pack([])
    assert (batch.tokens.tolist(), batch.labels.tolist(), batch.cu_seqlens.tolist()) == ([0], [-100], [0, 1])
    assert not batch.response_mask.any() and batch.sample_indices == ()


GOOD = Sequence(0, (1,), (2, 3), 0.0, (-1.0, -2.0))


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([replace(GOOD, prompt_ids=())], "at least one prompt and one response"),
        ([replace(GOOD, response_ids=(), rollout_logprobs=())], "at least one prompt and one response"),
        ([replace(GOOD, sample_index=2**39)], "token uid"),
        ([replace(GOOD, sample_index=-1)], "token uid"),
        ([GOOD, GOOD], "twice"),
        ([replace(GOOD, rollout_logprobs=(-1.0,))], "1 rollout_logprobs for 2 response tokens"),
        ([GOOD, replace(GOOD, sample_index=1, rollout_logprobs=None)], "1 of 2 sequences"),
    ],
)
def test_pack_refuses(sequences, message):
    with pytest.raises(ValueError, match=message):
        pack(sequences)


def test_without_rollout_logprobs_there_are_none():
    assert pack([replace(GOOD, rollout_logprobs=None)]).rollout_logprobs is None


def test_pack_is_fast():
    sequences = [Sequence(i, tuple(range(12)), tuple(range(8)), 0.1, (-1.0,) * 8) for i in range(500)]
    pack(sequences)
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        pack(sequences)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 5e-3  # a Python loop over the 10,000 tokens takes several times that


plans = st.tuples(st.lists(st.integers(1, 120), max_size=60), st.integers(1, 5), st.integers(1, 150))


@given(plans)
@settings(max_examples=300, deadline=None)
def test_plan_is_a_partition_within_budget_with_equal_counts(case):
    lengths, dp, budget = case
    plan = plan_micro_batches(lengths, dp=dp, max_tokens=budget)
    assert len(plan) == dp
    assert len({len(rank) for rank in plan}) == 1 and len(plan[0]) >= 1
    micros = [micro for rank in plan for micro in rank]
    assert sorted(i for micro in micros for i in micro) == list(range(len(lengths)))
    for micro in micros:
        assert micro == sorted(micro)
        assert len(micro) <= 1 or sum(lengths[i] for i in micro) <= budget


@given(plans)
@settings(max_examples=300, deadline=None)
def test_plan_balances_and_leaves_few_micro_batches_empty(case):
    lengths, dp, budget = case
    plan = plan_micro_batches(lengths, dp=dp, max_tokens=budget)
    loads = [sum(lengths[i] for micro in rank for i in micro) for rank in plan]
    assert max(loads) - min(loads) <= max(lengths, default=0)
    empty = sum(not micro for rank in plan for micro in rank)
    if len(lengths) >= dp * len(plan[0]):
        assert empty == 0
    else:
        assert empty < dp or not lengths
        assert all(sum(not micro for micro in rank) <= 1 for rank in plan)


@given(plans)
@settings(deadline=None)
def test_plan_wastes_at_most_half_of_the_budget(case):
    """Two micro-batches that together fit the budget would have been one, but for rounding up to equal counts."""
    lengths, dp, budget = case
    used = len(plan_micro_batches(lengths, dp=dp, max_tokens=budget)[0]) * dp
    assert used <= 2 * sum(-(-length // budget) * budget for length in lengths) / budget + 2 * dp


def test_plan_of_one_budget_is_one_micro_batch():
    assert plan_micro_batches([5, 3, 2], dp=1, max_tokens=10) == [[[0, 1, 2]]]
    assert plan_micro_batches([5, 4, 2, 1], dp=2, max_tokens=100) == [[[0, 3]], [[1, 2]]]


def test_the_longest_are_placed_first():
    """Loads 4 and 4; in the order given it would be 3 and 5."""
    assert plan_micro_batches([1, 1, 2, 4], dp=2, max_tokens=100) == [[[0, 1, 2]], [[3]]]


@pytest.mark.parametrize("arguments", [{"dp": 0, "max_tokens": 1}, {"dp": 1, "max_tokens": 0}])
def test_plan_refuses(arguments):
    with pytest.raises(ValueError, match="wanted dp >= 1"):
        plan_micro_batches([1], **arguments)
    with pytest.raises(ValueError, match="got 0"):
        plan_micro_batches([3, 0], dp=1, max_tokens=4)


@given(st.lists(st.integers(), min_size=1, max_size=40), st.data())
@settings(deadline=None)
def test_mini_batches_are_contiguous_and_even(groups, data):
    updates = data.draw(st.integers(1, len(groups)))
    parts = split_mini_batches(groups, updates)
    assert len(parts) == updates
    assert [g for part in parts for g in part] == groups
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1


def test_more_updates_than_groups_is_an_error():
    with pytest.raises(ValueError, match="wanted 1 to 2"):
        split_mini_batches([1, 2], 3)
