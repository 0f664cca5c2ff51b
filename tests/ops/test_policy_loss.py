"""`policy_loss` against the papers' equations token by token in float64 (pyrl.ops.reference).

Sizes by code path: no token, one, an odd few, and more than one block of 4096 for the sums.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrl import ops
from pyrl.ops import reference
from pyrl.ops.policy_loss import SUMS

METHODS = {
    "ratio": {},
    "ppo_clip": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2},
    "clip_higher": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28},
    "dual clip": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": 1.5},
    "dual clip alone": {"clip_ratio_c": 1.1},
    "clip_cov": {"clip_ratio_low": 1.0, "clip_ratio_high": 1.0, "selected": True},
    "clip_cov narrow": {"clip_ratio_low": 0.1, "clip_ratio_high": 0.1, "selected": True},
    "kl_cov": {"kl_cov_coef": 1.0, "selected": True},
    "kl_cov strong": {"kl_cov_coef": 7.5, "selected": True},
}
ROUNDING = {torch.float32: 2.0**-24, torch.float64: 2.0**-51}
"""fp32: computed in fp64 from the same inputs and rounded once. fp64: a few operations, relative to the parts of a sum
that may cancel."""


def make_case(tokens, dtype=torch.float64, *, seed=0, spread=0.4):
    generator = torch.Generator().manual_seed(seed)
    old = -torch.empty(tokens, dtype=torch.float64).exponential_(generator=generator)
    logprobs = old + spread * torch.randn(tokens, generator=generator, dtype=torch.float64)
    advantages = torch.randn(tokens, generator=generator, dtype=torch.float64)
    advantages[::7] = 0
    mask = torch.rand(tokens, generator=generator) > 0.3
    selected = torch.rand(tokens, generator=generator) > 0.6
    return logprobs.to(dtype), old.to(dtype), advantages.to(dtype), mask, selected


def arguments_of(method, selected):
    arguments = dict(METHODS[method])
    if "selected" in arguments:
        arguments["selected"] = selected
    return arguments


def run(function, logprobs, *rest, upstream, device="cpu", **kwargs):
    """(loss, gradient), float64, computed on `device`."""
    move = lambda value: value.to(device) if isinstance(value, torch.Tensor) else value  # noqa: E731
    x = logprobs.clone().to(device).requires_grad_()
    loss = function(x, *map(move, rest), **{name: move(value) for name, value in kwargs.items()})
    loss = getattr(loss, "loss", loss)
    if not loss.requires_grad:  # the reference's loss of no token, or of tokens that all lost theirs
        return loss.double(), torch.zeros_like(logprobs).double()
    (gradient,) = torch.autograd.grad(loss, x, upstream.to(loss), allow_unused=True)
    gradient = torch.zeros_like(logprobs) if gradient is None else gradient
    return loss.detach().double().cpu(), gradient.double().cpu()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 7, 257])
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_equations(method, tokens, dtype, device):
    logprobs, old, advantages, mask, selected = make_case(tokens, dtype)
    mask[:1] = True
    arguments = arguments_of(method, selected)
    upstream = torch.linspace(0.5, 2.0, tokens, dtype=torch.float64).to(dtype)
    penalty = 0.0 if dtype == torch.float32 else arguments.get("kl_cov_coef", 0.0) * (1 + (logprobs - old).abs())
    for before in (old, None):
        inputs = logprobs, before, advantages, mask
        got = run(ops.policy_loss, *inputs, upstream=upstream, device=device, **arguments)
        want = run(reference.policy_loss, *inputs, upstream=upstream, **arguments)
        for ours, exact, roundings in zip(got, want, (1, 2), strict=True):  # the gradient is multiplied once more
            assert ours.shape == exact.shape == (tokens,)
            assert ((ours - exact).abs() <= roundings * ROUNDING[dtype] * (exact.abs() + penalty)).all()


@pytest.mark.parametrize("method", METHODS)
def test_what_binds_has_no_gradient_and_every_branch_was_taken(method):
    logprobs, old, advantages, mask, _ = make_case(257)
    arguments = arguments_of(method, None)
    result = ops.policy_loss(logprobs, old, advantages, mask, **arguments)
    _, gradient = run(ops.policy_loss, logprobs, old, advantages, mask, upstream=torch.ones(257), **arguments)
    ratio = (logprobs - old).exp()
    low = 1 - arguments.get("clip_ratio_low", 1.0)
    high, c = 1 + arguments.get("clip_ratio_high", math.inf), arguments.get("clip_ratio_c", math.inf)
    above = mask & (((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio > c)))
    below = mask & (advantages < 0) & (ratio < low)
    assert torch.equal(result.binds, above | below)
    assert torch.equal(gradient == 0, above | below | ~mask | (advantages == 0))
    if low > 0:
        assert below.any()
    assert above.any() == (min(high, c) < math.inf)
    assert (result.sums["clipped_high_tokens"], result.sums["clipped_low_tokens"]) == (above.sum(), below.sum())


def test_sums(device):
    case = [x.to(device) for x in make_case(9000, torch.float32)]  # three blocks, the last one not full
    logprobs, old, advantages, mask, selected = case
    result = ops.policy_loss(logprobs, old, advantages, mask, selected=selected, kl_cov_coef=2.0)
    d = (logprobs.double() - old.double())[mask]
    chosen = selected[mask]
    assert tuple(result.sums) == SUMS
    assert all(value.dtype == torch.float64 and value.dim() == 0 for value in result.sums.values())
    assert result.sums["selected_tokens"] == chosen.sum()
    assert result.sums["ratio_sum"].item() == pytest.approx(d.exp().sum().item(), rel=1e-14)
    assert result.sums["approx_kl_sum"].item() == pytest.approx((d.expm1() - d).sum().item(), rel=1e-12)
    assert result.sums["kl_penalty_sum"].item() == pytest.approx(2 * d[chosen].abs().sum().item(), rel=1e-14)
    assert result.sums["clipped_high_tokens"] == result.sums["clipped_low_tokens"] == 0
    empty = ops.policy_loss(logprobs[:0], old[:0], advantages[:0], mask[:0])
    assert all(value == 0 for value in empty.sums.values()) and empty.loss.shape == empty.binds.shape == (0,)


@pytest.mark.parametrize("method", METHODS)
def test_masked_tokens_are_not_read(method):
    logprobs, old, advantages, mask, selected = make_case(257)
    arguments = arguments_of(method, selected)
    clean = ops.policy_loss(logprobs, old, advantages, mask, **arguments)
    inputs = (logprobs, math.nan), (old, -math.inf), (advantages, math.inf)
    poisoned = [torch.where(mask, x, bad) for x, bad in inputs]
    dirty = ops.policy_loss(*poisoned, mask, **arguments)
    assert torch.equal(dirty.loss, clean.loss) and torch.equal(dirty.binds, clean.binds)
    assert dirty.sums == clean.sums
    gradients = [
        run(ops.policy_loss, x, *rest, mask, upstream=torch.ones(257), **arguments)[1]
        for x, *rest in ((logprobs, old, advantages), poisoned)
    ]
    assert torch.equal(*gradients) and (gradients[0][~mask] == 0).all()


class TestFirstUpdate:
    """Without old log-probs, r is 1 whatever they round to: loss -A, gradient -A, no penalty, nothing binds."""

    @pytest.mark.parametrize("method", METHODS)
    def test_the_policy_is_its_own_old_policy(self, method):
        logprobs, _, advantages, mask, selected = make_case(257, torch.float32)
        arguments = arguments_of(method, selected)
        loss, gradient = run(ops.policy_loss, logprobs, None, advantages, mask, upstream=torch.ones(257), **arguments)
        dropped = selected if "clip_cov" in method else torch.zeros_like(mask)
        want = torch.where(mask & ~dropped, -advantages, 0.0).double()
        assert torch.equal(loss, want) and torch.equal(gradient, want)
        result = ops.policy_loss(logprobs, None, advantages, mask, **arguments)
        assert not result.binds.any()
        assert result.sums["ratio_sum"] == mask.sum()
        assert result.sums["approx_kl_sum"] == result.sums["kl_penalty_sum"] == 0


class TestTies:
    def test_a_ratio_on_its_bound_is_not_clipped(self):
        # 1 - 0.5 and 1 + 1 are exact ratios: ln 1/2 and ln 2 are not, so bounds are taken from what exp gives
        d = torch.tensor([0.5, 2.0], dtype=torch.float64).log()
        ratio = d.exp()
        inputs = d, torch.zeros(2).double(), torch.tensor([-1.0, 1.0]).double(), torch.tensor([True, True])
        low, high = 1 - ratio[0].item(), ratio[1].item() - 1
        assert 1 - low == ratio[0] and 1 + high == ratio[1]
        on_it = ops.policy_loss(*inputs, clip_ratio_low=low, clip_ratio_high=high)
        assert not on_it.binds.any()
        inside = ops.policy_loss(*inputs, clip_ratio_low=low - 1e-12, clip_ratio_high=high - 1e-12)
        assert inside.binds.all()

    def test_an_advantage_of_zero_never_binds(self):
        d = torch.tensor([-3.0, 0.0, 3.0])
        result = ops.policy_loss(d, torch.zeros(3), torch.zeros(3), torch.ones(3).bool(), clip_ratio_low=0.2,
                                 clip_ratio_high=0.2, clip_ratio_c=3.0)  # fmt: skip
        assert not result.binds.any() and (result.loss == 0).all()

    @pytest.mark.parametrize(("d", "gradient"), [(0.0, 0), (9e-7, 0), (-9e-7, 0), (2e-6, 1), (-2e-6, -1)])
    def test_the_penalty_of_a_tiny_difference_has_no_gradient(self, d, gradient):
        logprobs = torch.tensor([d], dtype=torch.float64)
        inputs = logprobs, torch.zeros(1).double(), torch.zeros(1).double(), torch.ones(1).bool()
        loss, found = run(ops.policy_loss, *inputs, upstream=torch.ones(1), selected=inputs[3], kl_cov_coef=3.0)
        assert loss.item() == 3.0 * abs(d) and found.item() == 3.0 * gradient


def test_an_overflown_ratio_that_is_clipped_has_no_gradient():
    """exp(1000) is inf: through a maximum and its gradient it would come back as 0 * inf."""
    inputs = torch.tensor([1000.0, 1000.0]), torch.zeros(2), torch.tensor([1.0, -1.0]), torch.ones(2).bool()
    loss, gradient = run(ops.policy_loss, *inputs, upstream=torch.ones(2), clip_ratio_high=0.2, clip_ratio_c=3.0)
    assert loss.tolist() == pytest.approx([-1.2, 3.0]) and gradient.tolist() == [0, 0]


def test_what_is_not_finite_stays_so():
    for bad in (math.nan, -math.inf):
        logprobs = torch.tensor([bad, -1.0])
        result = ops.policy_loss(logprobs, torch.tensor([-1.0, math.nan]), torch.ones(2), torch.ones(2).bool())
        assert not result.sums["approx_kl_sum"].isfinite() and not result.loss[1].isfinite()


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck(method):
    logprobs, old, advantages, mask, selected = make_case(31)
    arguments = arguments_of(method, selected)
    assert torch.autograd.gradcheck(
        lambda x: ops.policy_loss(x, old, advantages, mask, **arguments).loss, (logprobs.requires_grad_(),)
    )


@pytest.mark.parametrize("first", [False, True])
def test_opcheck(first):
    logprobs, old, advantages, mask, selected = make_case(31, torch.float32)
    optional = (None, None) if first else (old, selected)
    torch.library.opcheck(
        torch.ops.pyrl.policy_loss, (logprobs, optional[0], advantages, mask, optional[1], 0.8, 1.2, 3.0, False, 1.0)
    )


def test_compiles_without_a_graph_break():
    logprobs, old, advantages, mask, selected = make_case(31, torch.float32)

    def loss(x):
        return ops.policy_loss(x, old, advantages, mask, selected=selected, kl_cov_coef=1.0).loss.sum()

    def gradient(function):
        x = logprobs.clone().requires_grad_()
        return torch.autograd.grad(function(x), x)[0]

    assert torch.equal(gradient(torch.compile(loss, fullgraph=True, backend="aot_eager")), gradient(loss))


def test_arguments_that_are_not_contiguous():
    logprobs, old, advantages, mask, selected = make_case(64)
    want = ops.policy_loss(logprobs, old, advantages, mask, selected=selected)
    strided = [torch.stack((x, x), 1)[:, 0] for x in (logprobs, old, advantages, mask, selected)]
    assert not strided[0].is_contiguous()
    got = ops.policy_loss(*strided[:4], selected=strided[4])
    assert torch.equal(got.loss, want.loss) and torch.equal(got.binds, want.binds) and got.sums == want.sums


@pytest.mark.cuda
def test_two_runs_on_cuda_give_the_same_bits():
    logprobs, old, advantages, mask, _ = (x.cuda() for x in make_case(40000, torch.float32))
    first, second = (ops.policy_loss(logprobs, old, advantages, mask, clip_ratio_low=0.2) for _ in range(2))
    assert torch.equal(first.loss, second.loss) and first.sums == second.sums


def test_two_runs_give_the_same_bits_whatever_the_threads():
    logprobs, old, advantages, mask, _ = make_case(40000, torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(ops.policy_loss(logprobs, old, advantages, mask, clip_ratio_low=0.2, clip_ratio_high=0.2))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert torch.equal(other.loss, results[0].loss) and other.sums == results[0].sums


def test_no_gradient_reaches_old_logprobs_or_advantages():
    logprobs, old, advantages, mask, _ = make_case(9)
    leaves = [x.clone().requires_grad_() for x in (logprobs, old, advantages)]
    ops.policy_loss(*leaves, mask).loss.sum().backward()
    assert leaves[0].grad is not None and leaves[1].grad is None and leaves[2].grad is None


@given(st.floats(-20, 20), st.floats(-5, 5), st.floats(0, 1), st.floats(0, 3), st.floats(1.0, 10))
@settings(max_examples=200, deadline=None)
def test_any_token(d, advantage, low, high, c):
    inputs = [torch.tensor([x], dtype=torch.float64) for x in (d, 0.0, advantage)]
    bounds = {"clip_ratio_low": low, "clip_ratio_high": high, "clip_ratio_c": c}
    loss = ops.policy_loss(*inputs, torch.ones(1).bool(), **bounds).loss
    want = reference.policy_loss(*inputs, torch.ones(1).bool(), **bounds)
    assert torch.allclose(loss, want, rtol=1e-14, atol=0)


X, M = torch.zeros(4), torch.ones(4, dtype=torch.bool)
BAD_ARGUMENTS = {
    "logprobs bf16": (dict(logprobs=X.bfloat16()), "logprobs: got torch.bfloat16"),
    "logprobs 2d": (dict(logprobs=X[None]), r"logprobs: got torch.float32 \[1, 4\]"),
    "old length": (dict(old_logprobs=X[:3]), r"old_logprobs: got torch.float32 \[3\].*wanted torch.float32 \[4\]"),
    "old dtype": (dict(old_logprobs=X.double()), "old_logprobs: got torch.float64"),
    "advantages": (dict(advantages=None), "advantages: got NoneType"),
    "mask dtype": (dict(mask=X), "mask: got torch.float32"),
    "selected": (dict(selected=M.long()), "selected: got torch.int64"),
    "low": (dict(clip_ratio_low=1.5), r"clip_ratio_low: got float 1.5, wanted a number in \[0, 1\]"),
    "high": (dict(clip_ratio_high=-0.1), "clip_ratio_high: got float -0.1"),
    "high nan": (dict(clip_ratio_high=math.nan), "clip_ratio_high: got float nan"),
    "c": (dict(clip_ratio_c=0.9), "clip_ratio_c: got float 0.9"),
    "coefficient": (dict(kl_cov_coef=math.inf), "kl_cov_coef: got float inf"),
    "coefficient bool": (dict(kl_cov_coef=True), "kl_cov_coef: got bool True"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_named(case):
    changed, message = BAD_ARGUMENTS[case]
    arguments = dict(logprobs=X, old_logprobs=X, advantages=X, mask=M) | changed
    with pytest.raises(ValueError, match=message):
        ops.policy_loss(**arguments)
