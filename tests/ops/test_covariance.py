"""`token_covariance` against exact rational arithmetic, and the same bits for any partition over gloo ranks."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrl import ops
from pyrl.ops import reference
from tests.ops.gloo import run_on_ranks

FLOATS = st.floats(width=32)  # all of them: zeros of both signs, subnormals, the largest, inf and NaN
TOKENS = st.lists(st.tuples(FLOATS, FLOATS, st.booleans()), max_size=40)


def tensors(tokens):
    logprobs = torch.tensor([t[0] for t in tokens], dtype=torch.float32)
    advantages = torch.tensor([t[1] for t in tokens], dtype=torch.float32)
    return logprobs, advantages, torch.tensor([t[2] for t in tokens], dtype=torch.bool)


def exact(logprobs, advantages, mask):
    """The definition in rationals; only means and the result are rounded, to float64 and fp32."""
    rows = list(zip(logprobs.tolist(), advantages.tolist(), mask.tolist(), strict=True))
    used = [(Fraction(x), Fraction(y)) for x, y, m in rows if m and math.isfinite(x) and math.isfinite(y)]
    mean_x = float(sum(x for x, _ in used) / len(used)) if used else 0.0
    mean_y = float(sum(y for _, y in used) / len(used)) if used else 0.0
    values = [0.0 if not m else (x - mean_x) * (y - mean_y) if math.isfinite(x) and math.isfinite(y) else math.nan
              for x, y, m in rows]  # fmt: skip
    return torch.tensor(values, dtype=torch.float64).float()


def same_bits(a, b):
    return torch.equal(
        a.view(torch.int32).masked_fill(a.isnan(), 0), b.view(torch.int32).masked_fill(b.isnan(), 0)
    ) and (torch.equal(a.isnan(), b.isnan()))


def covariance_on(device, *arguments):
    return ops.token_covariance(*(argument.to(device) for argument in arguments)).cpu()


@given(tokens=TOKENS)
@settings(max_examples=300, deadline=None)
def test_is_the_definition_to_the_last_bit(device, tokens):
    arguments = tensors(tokens)
    assert same_bits(covariance_on(device, *arguments), exact(*arguments))


@given(TOKENS, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_order_changes_nothing(tokens, random):
    order = list(range(len(tokens)))
    random.shuffle(order)
    covariance = ops.token_covariance(*tensors(tokens))
    assert same_bits(covariance[order], ops.token_covariance(*tensors([tokens[i] for i in order])))


def test_like_float64_at_the_size_of_a_step(device):
    generator = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(100_000, generator=generator).exp()
    advantages = torch.randn(100_000, generator=generator)
    mask = torch.rand(100_000, generator=generator) < 0.7
    got = covariance_on(device, logprobs, advantages, mask)
    want = reference.token_covariance(logprobs, advantages, mask)
    assert torch.allclose(got.double(), want, rtol=2.0**-23, atol=0)
    assert got.dtype == torch.float32 and not got.requires_grad
    valid = torch.stack((logprobs, advantages))[:, mask].double()
    assert got.double().sum().item() / valid.shape[1] == pytest.approx(
        torch.cov(valid, correction=0)[0, 1].item(), abs=1e-8
    )


def test_a_sum_that_would_leave_fp32_or_int64(device):
    """10000 times the largest float, and one: the mean of the others is exact all the same."""
    largest = torch.finfo(torch.float32).max
    logprobs = torch.cat([torch.full((5000,), largest), torch.full((5000,), -largest), torch.tensor([1.0])])
    advantages = torch.zeros(10_001)
    advantages[-1] = 1
    got = covariance_on(device, logprobs, advantages, torch.ones(10_001, dtype=torch.bool))
    mean = 1 / 10_001
    assert got[-1].item() == pytest.approx((1 - mean) * (1 - mean), rel=1e-7)


def test_a_non_finite_input_costs_its_own_token_only(device):
    logprobs, advantages = (
        torch.tensor([-1.0, -torch.inf, -3.0, torch.nan, -4.0]),
        torch.tensor([1.0, 5, 2, 0, torch.inf]),
    )
    mask = torch.tensor([True, True, True, False, True])
    got = covariance_on(device, logprobs, advantages, mask)
    assert got.isnan().tolist() == [False, True, False, False, True]
    assert got[[0, 2, 3]].tolist() == [-0.5, -0.5, 0.0]


def test_masked_and_empty(device):
    nothing = torch.zeros(0)
    assert covariance_on(device, nothing, nothing, nothing.bool()).shape == (0,)
    x = torch.randn(5)
    assert covariance_on(device, x, x, torch.zeros(5, dtype=torch.bool)).tolist() == [0.0] * 5


def test_strided_and_requiring_grad(device):
    x, y = torch.randn(20, requires_grad=True, device=device), torch.randn(20, device=device)
    mask = torch.rand(20, device=device) < 0.5
    got = ops.token_covariance(x[::2], y[::2], mask[::2])
    assert torch.equal(got, ops.token_covariance(x[::2].detach().clone(), y[::2].clone(), mask[::2].clone()))
    assert not got.requires_grad


def test_opcheck():
    torch.library.opcheck(torch.ops.pyrl.covariance_sums, tensors([(1.0, 2.0, True), (0.5, -1.0, False)]))
    torch.library.opcheck(torch.ops.pyrl.mix_uids, (torch.arange(4), 5))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(logprobs=torch.zeros(3).double()), "logprobs: got torch.float64"),
        (dict(advantages=torch.zeros(2)), r"advantages: got torch.float32 \[2\].*wanted torch.float32 \[3\]"),
        (dict(mask=torch.zeros(3)), "mask: got torch.float32"),
    ],
)
def test_bad_arguments_are_named(changed, message):
    arguments = dict(logprobs=torch.zeros(3), advantages=torch.zeros(3), mask=torch.ones(3, dtype=torch.bool)) | changed
    with pytest.raises(ValueError, match=message):
        ops.token_covariance(*arguments.values())


def partitioned(tokens, cuts):
    """This rank's part of `tokens` cut into as many pieces as there are ranks."""
    bounds = [0, *cuts, len(tokens[0])]
    rank = dist.get_rank()
    return ops.token_covariance(*(t[bounds[rank] : bounds[rank + 1]] for t in tokens), group=dist.group.WORLD)


def on_each_rank(tokens, all_cuts):
    return [partitioned(tokens, cuts) for cuts in all_cuts]


def test_any_partition_over_ranks_gives_the_same_bits():
    generator = torch.Generator().manual_seed(1)
    tokens = (
        torch.randn(500, generator=generator) * 10.0 ** torch.randint(-20, 20, (500,), generator=generator),
        torch.randn(500, generator=generator),
        torch.rand(500, generator=generator) < 0.8,
    )
    tokens[0][::50] = torch.nan
    all_cuts = [(100, 300), (0, 500), (0, 0), (500, 500), (1, 2)]  # empty ranks among them
    whole = ops.token_covariance(*tokens)
    ranks = run_on_ranks(3, on_each_rank, tokens, all_cuts)
    for case in range(len(all_cuts)):
        assert same_bits(torch.cat([results[case] for results in ranks]), whole)
