"""`logprob_entropy` over a tensor-parallel group: shards on real gloo ranks against the whole vocabulary on one."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from pyrl import ops
from pyrl.ops import reference
from tests.ops.gloo import run_on_ranks

RANKS = 4
TOKENS, COLUMNS = 33, 256
CASES = {
    "plain fp32": dict(dtype=torch.float32),
    "plain bf16": dict(dtype=torch.bfloat16),
    "plain fp64": dict(dtype=torch.float64),
    # 4 shards of 64 columns: the last one, and half of the third, hold only padding
    "padding": dict(dtype=torch.float32, vocab_size=160),
    "temperature": dict(dtype=torch.float32, temperature=0.6),
    "temperature per token": dict(dtype=torch.float32, temperature=torch.linspace(0.3, 3, TOKENS)),
    "extreme": dict(dtype=torch.float32, scale=1e4),
    "minus infinity": dict(dtype=torch.float32, masked_columns=slice(0, 128)),
}
# Statistics travel as fp32, so each shard's S and R are rounded once more than on one rank.
OUTPUT_TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float64: 1e-13}
GRADIENT_TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float64: 1e-13}


def make_inputs(name):
    case = dict(CASES[name])
    dtype, scale, masked = case.pop("dtype"), case.pop("scale", 3.0), case.pop("masked_columns", None)
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(TOKENS, COLUMNS, generator=generator, dtype=torch.float64) * scale).to(dtype)
    if masked is not None:
        logits[:, masked] = -torch.inf
        labels = torch.randint(128, COLUMNS, (TOKENS,), generator=generator)
    else:
        labels = torch.randint(0, case.get("vocab_size", COLUMNS), (TOKENS,), generator=generator)
        labels[:4] = torch.tensor([63, 64, 127, 128])  # on both sides of a shard's edge
    labels[7] = -100
    upstream = torch.randn(2, TOKENS, generator=generator, dtype=torch.float64)
    return logits, labels, upstream, case


def forward_backward(logits, labels, upstream, **kwargs):
    x = logits.clone().requires_grad_()
    outputs = ops.logprob_entropy(x, labels, **kwargs)
    (gradient,) = torch.autograd.grad(outputs, x, [u.to(o) for u, o in zip(upstream, outputs, strict=True)])
    return outputs[0].detach(), outputs[1].detach(), gradient


def shard_of(logits, group):
    return logits.chunk(dist.get_world_size(group), dim=1)[dist.get_rank(group)].contiguous()


def record_calls(name, calls):
    """Note the bytes each rank sends in the collective `name`: its last tensor argument."""
    collective = getattr(dist, name)

    def recorded(*tensors, **kwargs):
        calls.append(tensors[-1].nbytes)
        return collective(*tensors, **kwargs)

    setattr(dist, name, recorded)


def on_each_rank():
    """Every case over a group of 4 and, on ranks 0 and 1, over a group of 2; and a row that every rank must refuse."""
    gathers = []
    for name in {"all_gather_single", "all_gather_into_tensor", "all_reduce"} & set(dir(dist)):
        record_calls(name, gathers)
    pair = dist.new_group([0, 1])
    results = {}
    for name in CASES:
        logits, labels, upstream, kwargs = make_inputs(name)
        results[name, 4] = forward_backward(shard_of(logits, dist.group.WORLD), labels, upstream,
                                            group=dist.group.WORLD, **kwargs)  # fmt: skip
        if dist.get_rank() < 2:
            results[name, 2] = forward_backward(shard_of(logits, pair), labels, upstream, group=pair, **kwargs)
    results["gathers"] = list(gathers)
    logits, labels, _, _ = make_inputs("plain fp32")
    for held, value in (("nothing but -inf", -torch.inf), ("NaN", torch.nan)):
        logits[5] = -torch.inf
        logits[5, 200] = value
        try:
            ops.logprob_entropy(shard_of(logits, dist.group.WORLD), labels, group=dist.group.WORLD)
            results[held] = None
        except ValueError as error:
            results[held] = str(error)
    return results


@pytest.fixture(scope="module")
def results():
    return run_on_ranks(RANKS, on_each_rank)


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_shards_agree_with_the_whole(results, name, tp):
    logits, labels, upstream, kwargs = make_inputs(name)
    whole = forward_backward(logits, labels, upstream, **kwargs)
    shards = [results[rank][name, tp] for rank in range(tp)]
    for shard in shards:
        assert torch.equal(shard[0], shards[0][0]) and torch.equal(shard[1], shards[0][1])
    together = shards[0][0], shards[0][1], torch.cat([shard[2] for shard in shards], dim=1)
    largest = [max(1.0, value[value.isfinite()].abs().max().item()) for value in whole]
    tolerances = OUTPUT_TOLERANCE[logits.dtype], OUTPUT_TOLERANCE[logits.dtype], GRADIENT_TOLERANCE[logits.dtype]
    for got, want, size, tolerance in zip(together, whole, largest, tolerances, strict=True):
        assert torch.allclose(got, want, rtol=0, atol=tolerance * size)
    exact = reference.logprob_entropy(logits, labels, **kwargs)
    assert torch.allclose(together[0].double(), exact[0], rtol=0, atol=tolerances[0] * largest[0])
    assert torch.allclose(together[1].double(), exact[1], rtol=0, atol=tolerances[1] * largest[1])


def test_one_gather_of_16_bytes_a_token(results):
    """32 for fp64; nothing travels in the backward pass."""
    sizes = [32 if case["dtype"] == torch.float64 else 16 for case in CASES.values()]
    assert results[3]["gathers"] == [TOKENS * size for size in sizes]


@pytest.mark.parametrize("held", ["nothing but -inf", "NaN"])
def test_every_rank_refuses_a_row_without_softmax(results, held):
    for rank in range(RANKS):
        assert f"logits: got {held} in row 5" in results[rank][held]
