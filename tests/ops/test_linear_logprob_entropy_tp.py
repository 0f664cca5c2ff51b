"""`linear_logprob_entropy` over a tensor-parallel group: shards on real gloo ranks against the whole head on one."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from pyrl import ops
from tests.ops.gloo import run_on_ranks
from tests.ops.test_logprob_entropy_tp import record_calls

RANKS = 4
TOKENS, FEATURES, ROWS = 33, 24, 256
CASES = {
    "plain fp32": dict(dtype=torch.float32),
    "plain bf16": dict(dtype=torch.bfloat16),
    "bf16 logits": dict(dtype=torch.bfloat16, logits_dtype="bf16"),
    "plain fp64": dict(dtype=torch.float64),
    # 4 shards of 64 rows: the last one, and half of the third, hold only padding
    "padding": dict(dtype=torch.float32, vocab_size=160),
    "temperature per token": dict(dtype=torch.float32, temperature=torch.linspace(0.3, 3, TOKENS)),
    # all labels in the first shard: the others get their part of the gradient all the same
    "labels of one rank": dict(dtype=torch.float64, labels=64),
}
# Statistics travel as fp32; the gradient of hidden is summed over ranks and that of bf16 rounded to it, whose factors
# (probabilities) are rounded too; a bf16 logit may round the other way where another order of summation is used.
TOLERANCE = {"plain fp32": 4e-6, "plain bf16": 2.0**-8, "bf16 logits": 2.0**-6, "plain fp64": 1e-13, "padding": 4e-6,
             "temperature per token": 4e-6, "labels of one rank": 1e-13}  # fmt: skip


def make_inputs(name):
    case = dict(CASES[name])
    dtype, last = case.pop("dtype"), case.pop("labels", case.get("vocab_size", ROWS))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    weight = (torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64) * 0.6).to(dtype)
    labels = torch.randint(0, last, (TOKENS,), generator=generator)
    labels[:4] = torch.tensor([63, 64, 127, 128]).clamp(max=last - 1)  # on both sides of a shard's edge
    labels[7] = -100
    upstream = torch.randn(2, TOKENS, generator=generator, dtype=torch.float64)
    return hidden, weight, labels, upstream, case


def forward_backward(hidden, weight, labels, upstream, **kwargs):
    leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    outputs = ops.linear_logprob_entropy(*leaves, labels, **kwargs)
    gradients = torch.autograd.grad(outputs, leaves, [u.to(o) for u, o in zip(upstream, outputs, strict=True)])
    return [x.detach() for x in (*outputs, *gradients)]


def shard_of(weight, group):
    return weight.chunk(dist.get_world_size(group))[dist.get_rank(group)].contiguous()


def on_each_rank():
    gathered, reduced = [], []
    for name in {"all_gather_single", "all_gather_into_tensor"} & set(dir(dist)):
        record_calls(name, gathered)
    record_calls("all_reduce", reduced)
    pair = dist.new_group([0, 1])
    results = {}
    for name in CASES:
        hidden, weight, labels, upstream, kwargs = make_inputs(name)
        world = dist.group.WORLD
        results[name, 4] = forward_backward(hidden, shard_of(weight, world), labels, upstream, group=world, **kwargs)
        if dist.get_rank() < 2:
            shard = shard_of(weight, pair)
            results[name, 2] = forward_backward(hidden, shard, labels, upstream, group=pair, **kwargs)
    results["gathered"], results["reduced"] = list(gathered), list(reduced)
    hidden, weight, labels, upstream, _ = make_inputs("plain fp64")
    shard = shard_of(weight, dist.group.WORLD)
    arguments = dict(group=dist.group.WORLD, sum_hidden_grad=False)
    reduced.clear()
    results["part"] = forward_backward(hidden, shard, labels, upstream, **arguments)[2]
    results["reduced for parts"] = list(reduced)
    hidden[5, 0], shard[:, 0] = torch.inf, shard[:, 0].abs()
    try:
        ops.linear_logprob_entropy(hidden, shard, labels, **arguments)
    except ValueError as error:
        results["refused"] = str(error)
    return results


@pytest.fixture(scope="module")
def results():
    return run_on_ranks(RANKS, on_each_rank)


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_shards_agree_with_the_whole(results, name, tp):
    hidden, weight, labels, upstream, kwargs = make_inputs(name)
    whole = forward_backward(hidden, weight, labels, upstream, **kwargs)
    shards = [results[rank][name, tp] for rank in range(tp)]
    for shard in shards:
        for i in range(3):  # log-probs, entropy and the gradient of hidden are the same bits on every rank
            assert torch.equal(shard[i], shards[0][i])
    together = *shards[0][:3], torch.cat([shard[3] for shard in shards])
    outputs = 1e-5 if hidden.dtype == torch.bfloat16 and name != "bf16 logits" else TOLERANCE[name]
    for got, want, tolerance in zip(together, whole, [outputs] * 2 + [TOLERANCE[name]] * 2, strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        assert torch.allclose(got, want, rtol=0, atol=tolerance * max(1.0, want.abs().max().item()))


def test_ranks_without_the_label_get_a_gradient(results):
    for rank in range(RANKS):
        assert (results[rank]["labels of one rank", 4][3].abs().sum(1) > 0).all()


def test_what_travels(results):
    """Forward 16 bytes a token (32 for fp64); backward the gradient of hidden, in fp32 (fp64)."""
    wide = [2 if case["dtype"] == torch.float64 else 1 for case in CASES.values()]
    assert results[3]["gathered"] == [TOKENS * 16 * w for w in wide]
    assert results[3]["reduced"] == [TOKENS * FEATURES * 4 * w for w in wide]


def test_parts_of_the_gradient_of_hidden_add_up(results):
    hidden, weight, labels, upstream, _ = make_inputs("plain fp64")
    want = forward_backward(hidden, weight, labels, upstream)[2]
    parts = [results[rank]["part"] for rank in range(RANKS)]
    assert torch.allclose(sum(parts), want, atol=1e-13) and not torch.allclose(parts[0], want, atol=1e-3)
    assert all(results[rank]["reduced for parts"] == [] for rank in range(RANKS))


def test_every_rank_refuses_a_row_without_softmax(results):
    for rank in range(RANKS):
        assert "logits: got +inf in row 5" in results[rank]["refused"]
