"""`logprob_entropy` against log-softmax in float64 (pyrl.ops.reference), one process.

Sizes by code path. T: 0, one row, an odd few, more rows than threads take at once. V: 1; 17 (less than a block, odd
tail); 1000 (one tile, a tail); 32000 (many tiles, whole blocks); 151936 and 152064 (Qwen2's vocabulary, and padded).
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch._subclasses.fake_tensor import FakeTensorMode

from pyrl import ops
from pyrl.ops import reference

SHAPES = [(0, 17), (1, 1), (7, 1), (257, 17), (257, 1000), (7, 32000), (1, 151936), (3, 151936), (2, 152064)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

# What a result may add to twice the error of the same computation in PyTorch, relative to the largest value of the
# reference (at least 1). fp32 statistics: the rounding of the outputs and of four numbers before them. A gradient is
# rounded once to the dtype of the logits, half a unit in the last place. fp64: the reference is the same computation,
# so both errors are allowed for here: 100 units of 2^-53 of the largest logit, since the rounding of lse, which is as
# large, enters an exponential.
FP64_ROUNDING = 100 * 2.0**-53
STATISTICS_ROUNDING = {torch.float64: FP64_ROUNDING, **dict.fromkeys(DTYPES[:3], 8 * 2.0**-24)}
GRADIENT_ROUNDING = {
    torch.float32: 2.0**-22,
    torch.bfloat16: 2.0**-9,
    torch.float16: 2.0**-12,
    torch.float64: FP64_ROUNDING,
}


def make_case(tokens, vocab, dtype, *, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(tokens, vocab, generator=generator, dtype=torch.float64) * scale).to(dtype)
    labels = torch.randint(0, vocab, (tokens,), generator=generator)
    upstream = torch.randn(2, tokens, generator=generator, dtype=torch.float64)
    return logits, labels, upstream


def run(function, logits, labels, upstream, **kwargs):
    """(logprobs, entropy, gradient), float64."""
    x = logits.detach().clone().requires_grad_()
    logprobs, entropy = function(x, labels, **kwargs)
    ((logprobs * upstream[0].to(logprobs)).sum() + (entropy * upstream[1].to(entropy)).sum()).backward()
    return logprobs.detach().double(), entropy.detach().double(), x.grad.double()


def assert_as_exact_as_torch(logits, labels, upstream, **kwargs):
    dtype = logits.dtype
    ours = run(ops.logprob_entropy, logits, labels, upstream, **kwargs)
    exact = run(reference.logprob_entropy, logits, labels, upstream, **kwargs)
    torchs = run(reference.logprob_entropy, logits, labels, upstream, dtype=dtype, **kwargs)
    roundings = (STATISTICS_ROUNDING[dtype], STATISTICS_ROUNDING[dtype], GRADIENT_ROUNDING[dtype])
    for name, got, want, same, rounding in zip(
        ("logprobs", "entropy", "gradient"), ours, exact, torchs, roundings, strict=True
    ):
        assert torch.equal(got.isfinite(), want.isfinite()), name
        finite = want.isfinite()
        error = (got - want)[finite].abs()
        allowed = 2 * (same - want)[finite].abs().nan_to_num(0).max() if finite.any() else 0
        values = logits[logits.isfinite()] if dtype == torch.float64 else want[finite]
        largest = max(1.0, values.abs().max().item()) if values.numel() else 1.0
        assert (error <= allowed + rounding * largest).all(), (name, error.max().item(), float(allowed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "vocab"), SHAPES)
def test_matches_float64(tokens, vocab, dtype):
    logits, labels, upstream = make_case(tokens, vocab, dtype)
    assert_as_exact_as_torch(logits, labels, upstream)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rise", [0.5, 1.9, 2.1, 30.0, -2.1])
def test_rows_whose_maximum_rises_from_tile_to_tile(rise, dtype):
    """On CPU a tile (2048 columns) is summed against the maximum so far, once more if it exceeds it by more than 2."""
    logits, labels, upstream = make_case(5, 6 * 2048 + 100, dtype, scale=0.2)
    steps = torch.arange(logits.shape[1]) // 2048
    assert_as_exact_as_torch((logits.double() + rise * steps).to(dtype), labels, upstream)


def test_output_dtypes():
    for dtype in DTYPES:
        logits, labels, _ = make_case(3, 17, dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert [out.dtype for out in ops.logprob_entropy(logits, labels)] == [wide, wide]


@pytest.mark.parametrize("temperature", [0.6, 2.5, "per token"])
def test_temperature_is_part_of_the_function_and_of_its_gradient(temperature):
    logits, labels, upstream = make_case(67, 1000, torch.float32)
    if temperature == "per token":
        temperature = torch.linspace(0.3, 3.0, 67)
    assert_as_exact_as_torch(logits, labels, upstream, temperature=temperature)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bound", [1e-6, 1e6])
@pytest.mark.parametrize("per_token", [False, True])
def test_temperatures_at_the_bounds_are_exact(bound, per_token, dtype):
    """fp32(1e-6) lies below 1e-6. Logits a few temperatures apart and gradients of about 1, or all would be 0 or 1."""
    logits, labels, upstream = make_case(9, 1000, dtype, scale=min(bound, 100.0))
    temperature = torch.full((9,), bound) if per_token else bound
    assert_as_exact_as_torch(logits, labels, bound * upstream, temperature=temperature)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_padding_columns_are_never_read_and_get_no_gradient(dtype):
    logits, labels, upstream = make_case(9, 1000, dtype)
    logits[:, 990:] = torch.nan
    labels = labels.clamp(max=989)
    ours = run(ops.logprob_entropy, logits, labels, upstream, vocab_size=990)
    alone = run(ops.logprob_entropy, logits[:, :990].contiguous(), labels, upstream)
    assert torch.equal(ours[0], alone[0]) and torch.equal(ours[1], alone[1])
    assert torch.equal(ours[2][:, :990], alone[2])
    assert (ours[2][:, 990:] == 0).all()


def test_ignored_rows_are_not_read():
    logits, labels, upstream = make_case(9, 1000, torch.float32)
    labels[2], labels[8] = -100, -100
    expected = run(reference.logprob_entropy, logits, labels, upstream)
    poisoned = logits.clone()
    poisoned[2], poisoned[8] = torch.nan, -torch.inf
    logprobs, entropy, gradient = run(ops.logprob_entropy, poisoned, labels, upstream)
    for row in (2, 8):
        assert logprobs[row] == 0 and entropy[row] == 0 and (gradient[row] == 0).all()
    assert torch.allclose(gradient, expected[2], atol=1e-5)


def test_rows_without_upstream_gradient_get_zeros():
    logits, labels, upstream = make_case(5, 1000, torch.float32)
    upstream[:, 3] = 0
    gradient = run(ops.logprob_entropy, logits, labels, upstream)[2]
    assert (gradient[3] == 0).all() and (gradient[[0, 1, 2, 4]].abs().sum(1) > 0).all()


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_alone(used):
    """The other's upstream gradient is None in autograd."""
    logits, labels, upstream = make_case(5, 1000, torch.float64)
    x, y = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    (ops.logprob_entropy(x, labels)[used] * upstream[0]).sum().backward()
    (reference.logprob_entropy(y, labels)[used] * upstream[0]).sum().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-13)


def test_upstream_gradient_with_stride_zero():
    """`.sum()` sends an expanded scalar back."""
    logits, labels, _ = make_case(33, 100, torch.float32)
    x = logits.clone().requires_grad_()
    ops.logprob_entropy(x, labels)[0].sum().backward()
    assert torch.allclose(x.grad.double(), run(reference.logprob_entropy, logits, labels, torch.tensor([[1.0], [0.0]])
                                               .expand(2, 33))[2], atol=1e-6)  # fmt: skip


def test_rows_further_apart_than_int32_counts():
    """Storage of 4 GB, of which two rows are ever touched."""
    logits, labels, upstream = make_case(2, 100, torch.bfloat16)
    view = torch.empty(2**31 + 100, dtype=torch.bfloat16).as_strided((2, 100), (2**31, 1)).copy_(logits)
    expected = run(ops.logprob_entropy, logits, labels, upstream)
    leaf = torch.zeros(2, 100, dtype=torch.bfloat16, requires_grad=True)
    outputs = ops.logprob_entropy(Shifted.apply(leaf, view), labels, inplace_backward=True)
    torch.autograd.backward(outputs, list(upstream.float()))
    for got, want in zip((*outputs, leaf.grad, view), (*expected, expected[2]), strict=True):
        assert torch.equal(got.detach().double(), want)


class Shifted(torch.autograd.Function):
    """The identity, with other storage."""

    @staticmethod
    def forward(ctx, leaf, storage):
        return storage.view_as(storage)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def test_flat_rows():
    logits, labels, upstream = make_case(5, 32000, torch.float32, scale=0.0)
    assert_as_exact_as_torch(logits, labels, upstream)
    logprobs, entropy = ops.logprob_entropy(logits, labels)
    assert (entropy <= math.log(32000) + 1e-6).all() and torch.allclose(entropy, -logprobs, atol=1e-6)


def test_an_unused_entropy_costs_nothing(monkeypatch):
    """The kernel is asked for the gradient of the log-probs alone."""
    asked = []
    real = torch.ops.pyrl.logprob_entropy_backward
    monkeypatch.setattr(
        torch.ops.pyrl, "logprob_entropy_backward", lambda g_l, g_h, *rest: asked.append(g_h) or real(g_l, g_h, *rest)
    )
    logits, labels, upstream = make_case(5, 100, torch.float32)
    for outputs in ((0,), (0, 1)):
        x = logits.clone().requires_grad_()
        result = ops.logprob_entropy(x, labels)
        torch.autograd.backward([result[i] for i in outputs], [upstream[i].float() for i in outputs])
    assert asked[0] is None and torch.equal(asked[1], upstream[1].float())


def test_compiles_to_one_graph():
    """And what only values tell is still an error."""
    logits, labels, upstream = make_case(6, 40, torch.float32)

    def loss(x, y):
        logprobs, entropy = ops.logprob_entropy(x * 2, y, temperature=0.7)
        return (logprobs * upstream[0] - 0.1 * entropy).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (loss, compiled):
        x = logits.clone().requires_grad_()
        gradients.append(torch.autograd.grad(function(x, labels), x)[0])
    assert torch.equal(*gradients) and gradients[0].abs().sum() > 0
    with pytest.raises(ValueError, match="labels: got 40 at row 0"):
        compiled(x, torch.full_like(labels, 40))
    with pytest.raises(ValueError, match="logits: got NaN in row 0"):
        compiled(torch.full_like(logits, math.nan).requires_grad_(), torch.zeros_like(labels))


@pytest.mark.parametrize("layout", ["transposed", "row stride", "offset", "expanded"])
def test_layouts(layout):
    logits, labels, upstream = make_case(12, 130, torch.float32)
    if layout == "transposed":
        view = logits.t().contiguous().t()
    elif layout == "row stride":
        view = torch.zeros(12, 200)[:, :130].copy_(logits)
    elif layout == "offset":
        view = torch.zeros(12 * 130 + 3)[3:].view(12, 130).copy_(logits)
    else:
        logits = logits[:1].expand(12, 130).contiguous()
        view = logits[:1].expand(12, 130)
    assert view.is_contiguous() == (layout == "offset")
    expected = run(ops.logprob_entropy, logits, labels, upstream)
    x = view.detach().requires_grad_()
    logprobs, entropy = ops.logprob_entropy(x, labels)
    (gradient,) = torch.autograd.grad((logprobs, entropy), x, list(upstream.float()))
    for got, want in zip((logprobs, entropy, gradient), expected, strict=True):
        assert torch.equal(got.double(), want)


@pytest.mark.parametrize("offset", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_extreme_logits(offset, dtype):
    """Entropy is centred: an offset of all logits costs no digits, and none of it is negative."""
    logits, labels, upstream = make_case(33, 1000, torch.float64)
    logits = (logits + offset).to(dtype)
    assert_as_exact_as_torch(logits, labels, upstream)
    logprobs, entropy = ops.logprob_entropy(logits, labels)
    assert (entropy >= 0).all() and (logprobs <= 0).all()


def test_one_dominant_logit():
    logits = torch.full((2, 1000), -1e4)
    logits[:, 7] = 1e4
    labels = torch.tensor([7, 8])
    logprobs, entropy, gradient = run(ops.logprob_entropy, logits, labels, torch.ones(2, 2))
    assert logprobs.tolist() == [0.0, -2e4] and entropy.tolist() == [0.0, 0.0]
    assert (gradient[0] == 0).all()
    assert gradient[1, 7] == -1 and gradient[1, 8] == 1 and gradient[1].abs().sum() == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradient_at_the_label_near_probability_one(dtype):
    """p = 0.99966 is 1 in bf16 and fp16: 1 - p is lost if p is rounded to the dtype of the logits first."""
    logits = torch.tensor([[8.0, 0.0]], dtype=dtype)
    gradient = run(ops.logprob_entropy, logits, torch.tensor([0]), torch.tensor([[1.0], [0.0]]))[2]
    want = 1 / (1 + math.exp(8.0))
    assert gradient[0].tolist() == pytest.approx([want, -want], rel=max(torch.finfo(dtype).eps, 4e-4))


def test_near_probability_one_the_error_is_that_of_the_denominator():
    """Absolute for the label, since S = 1 + e^-x is rounded to fp32; relative for the other column."""
    x = torch.arange(0.0, 31.0)
    logits = torch.stack([x, torch.zeros_like(x)], 1)
    labels, upstream = torch.zeros(len(x), dtype=torch.int64), torch.tensor([[1.0], [0.0]]).expand(2, len(x))
    logprobs, _, gradient = run(ops.logprob_entropy, logits, labels, upstream)
    want_logprobs, _, want = run(reference.logprob_entropy, logits, labels, upstream)
    assert ((logprobs - want_logprobs).abs() <= 2.0**-24 + 1e-6 * want_logprobs.abs()).all()
    assert ((gradient - want)[:, 0].abs() <= 2.0**-24 + 1e-6 * want[:, 0]).all()
    assert ((gradient - want)[:, 1].abs() <= 1e-5 * want[:, 1].abs()).all()
    assert 4e-8 < want[17, 0] < 4.2e-8 and gradient[17, 0] == 0  # what docs/ops.md says is lost


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_minus_infinity(dtype):
    """-inf logits have probability 0 and gradient 0, whole tiles of them too; a label on one has log-prob -inf."""
    logits, labels, upstream = make_case(5, 3000, dtype)
    logits[:, ::3] = -torch.inf
    logits[1, :2500] = -torch.inf
    logits[2, 1:] = -torch.inf
    logits[2, 0] = 1.0
    labels = torch.tensor([1, 2999, 0, 4, 5])
    logits[1, 2999] = 0.5
    assert_as_exact_as_torch(logits, labels, upstream)
    logprobs, entropy = ops.logprob_entropy(logits, labels)
    assert logprobs[2] == 0 and entropy[2] == 0
    logprobs, entropy, gradient = run(ops.logprob_entropy, logits, torch.full((5,), 3), upstream)
    assert (logprobs == -torch.inf).all() and entropy.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("kind", ["-inf", "nan", "nan among -inf", "+inf"])
@pytest.mark.parametrize("vocab", [5, 3000])
def test_a_row_that_has_no_softmax_is_named(kind, vocab):
    logits, labels, _ = make_case(9, vocab, torch.float32)
    if kind != "nan":
        logits[4] = -torch.inf
    if kind.startswith("nan"):
        logits[4, vocab // 2] = torch.nan
    if kind == "+inf":
        logits[4, vocab // 2] = torch.inf
    logits[7] = -torch.inf  # a later one does not hide the first
    held = {"-inf": "nothing but -inf", "+inf": r"\+inf"}.get(kind, "NaN")
    with pytest.raises(ValueError, match=f"logits: got {held} in row 4"):
        ops.logprob_entropy(logits, labels)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradcheck(temperature):
    logits, labels, _ = make_case(4, 37, torch.float64)
    labels = labels.clamp(max=32)
    labels[1] = -100
    assert torch.autograd.gradcheck(
        lambda x: ops.logprob_entropy(x, labels, temperature=temperature, vocab_size=33), (logits.requires_grad_(),)
    )


def test_opcheck():
    logits, labels, upstream = make_case(6, 40, torch.float32)
    temperature = torch.tensor([0.7], dtype=torch.float64)
    stats = torch.ops.pyrl.logprob_entropy_stats(logits, labels, temperature, 0, 38)
    _, entropy, lse, _ = torch.ops.pyrl.logprob_entropy_merge(stats[None], labels, temperature)
    backward = (*upstream.float(), logits, labels, temperature, entropy, lse, 0, 40)
    without_entropy = (backward[0], None, *backward[2:])
    for op, arguments in (
        (torch.ops.pyrl.logprob_entropy_stats, (logits, labels, temperature, 0, 38)),
        (torch.ops.pyrl.logprob_entropy_merge, (stats[None], labels, temperature)),
        (torch.ops.pyrl.logprob_entropy_merge_or_raise, (stats[None], labels, temperature, 40)),
        (torch.ops.pyrl.logprob_entropy_backward, backward),
        (torch.ops.pyrl.logprob_entropy_backward, without_entropy),
        (torch.ops.pyrl.logprob_entropy_backward_, backward),
    ):
        torch.library.opcheck(op, arguments)


def test_two_runs_give_the_same_bits_whatever_the_threads():
    logits, labels, upstream = make_case(257, 1000, torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(run(ops.logprob_entropy, logits, labels, upstream))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def print_statistics():
    """In a process of its own: the kernels are chosen once."""
    for dtype in DTYPES:
        print([t.tolist() for t in run(ops.logprob_entropy, *make_case(7, 1500, dtype), temperature=0.7)])


@pytest.mark.parametrize("kernels", ["generic", "unheard of"])
def test_kernels_for_a_processor_without_vector_extensions(kernels):
    code = "from tests.ops.test_logprob_entropy import print_statistics; print_statistics()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYRL_CPU_KERNELS": kernels, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if kernels == "unheard of":
        assert done.returncode != 0 and "PYRL_CPU_KERNELS is 'unheard of'" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    for dtype, line in zip(DTYPES, done.stdout.splitlines(), strict=True):
        here = run(ops.logprob_entropy, *make_case(7, 1500, dtype), temperature=0.7)
        tolerances = 20 * STATISTICS_ROUNDING[dtype], 20 * STATISTICS_ROUNDING[dtype], 4 * GRADIENT_ROUNDING[dtype]
        for got, want, tolerance in zip(json.loads(line), here, tolerances, strict=True):
            assert torch.allclose(torch.tensor(got, dtype=torch.float64), want, rtol=tolerance, atol=tolerance)


@given(
    hnp.arrays("float32", (3, 41), elements=st.floats(-1e4, 1e4, width=32)),
    st.lists(st.integers(0, 40), min_size=3, max_size=3),
    st.floats(0.05, 20.0),
)
@settings(max_examples=100, deadline=None)
def test_any_finite_row(logits, labels, temperature):
    logits, labels = torch.from_numpy(logits), torch.tensor(labels)
    logprobs, entropy = ops.logprob_entropy(logits, labels, temperature=temperature)
    want = reference.logprob_entropy(logits, labels, temperature=temperature)
    assert torch.allclose(logprobs.double(), want[0], rtol=3e-7, atol=1e-6)
    assert torch.allclose(entropy.double(), want[1], rtol=3e-7, atol=2e-6)
    assert (entropy >= 0).all() and (entropy <= math.log(41) * (1 + 1e-6)).all() and (logprobs <= 0).all()


def test_all_fp16_and_bf16_values_convert_exactly():
    """With a single column beside a 0, the log-prob tells the value: log-prob of 0 against x is -softplus(x)."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype)
        values = values[values.isfinite()]
        stats = torch.ops.pyrl.logprob_entropy_stats(
            values[:, None], torch.zeros(len(values), dtype=torch.int64), torch.ones(1, dtype=torch.float64), 0, 1
        )
        assert torch.equal(stats[:, 3], values.float()) and torch.equal(stats[:, 0], values.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_gradient_is_rounded_to_nearest_even(dtype):
    """Two equal logits: the gradient of a log-prob is +-g/2, over the whole range of the type, subnormals included."""
    upstream = torch.cat(
        [torch.logspace(-9, 5.5, 4001), torch.tensor([2.0**-24, 3 * 2.0**-25, 131006.0, 131042.0, 2e5])]
    )
    logits = torch.zeros(len(upstream), 2, dtype=dtype, requires_grad=True)
    logprobs, _ = ops.logprob_entropy(logits, torch.zeros(len(upstream), dtype=torch.int64))
    (gradient,) = torch.autograd.grad(logprobs, logits, upstream)
    wanted = (upstream / 2).to(dtype)
    assert torch.allclose(gradient[:, 0].double(), wanted.double(), rtol=0, atol=0)
    # exp(-ln 2) in fp32 may be one unit off 1/2, which moves a value that lies on a rounding boundary
    off = gradient[:, 1].float() + wanted.float()
    assert (
        off.nan_to_num(0).abs() <= 2 * torch.finfo(dtype).eps * wanted.float().abs().nan_to_num(posinf=0) + 6e-8
    ).all()


class TestInplaceBackward:
    def test_writes_the_same_bits_over_the_logits(self):
        logits, labels, upstream = make_case(33, 1000, torch.bfloat16)
        labels[3] = -100
        expected = run(ops.logprob_entropy, logits, labels, upstream, vocab_size=1000)[2]
        leaf = logits.clone().requires_grad_()
        x = leaf * 1
        logprobs, entropy = ops.logprob_entropy(x, labels, inplace_backward=True)
        torch.autograd.backward((logprobs, entropy), list(upstream.float()))
        assert torch.equal(leaf.grad.double(), expected)
        assert torch.equal(x.detach().double(), expected)

    def test_the_default_leaves_the_logits_alone(self):
        logits, labels, upstream = make_case(5, 100, torch.float32)
        x = logits.clone().requires_grad_()
        torch.autograd.backward(ops.logprob_entropy(x, labels), list(upstream.float()))
        assert torch.equal(x.detach(), logits)

    def test_a_second_backward_is_an_error(self):
        logits, labels, _ = make_case(5, 100, torch.float32)
        leaf = logits.requires_grad_()
        logprobs, _ = ops.logprob_entropy(leaf * 1, labels, inplace_backward=True)
        logprobs.sum().backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            logprobs.sum().backward()

    def test_refuses_logits_it_would_destroy(self):
        logits, labels, _ = make_case(5, 100, torch.float32)
        with pytest.raises(ValueError, match="inplace_backward: got logits that are a leaf"):
            ops.logprob_entropy(logits.requires_grad_(), labels, inplace_backward=True)
        with pytest.raises(ValueError, match="inplace_backward: got logits with strides"):
            ops.logprob_entropy(logits.detach()[:1].expand(5, 100), labels, inplace_backward=True)


L, Y = torch.zeros(4, 10), torch.zeros(4, dtype=torch.int64)
BAD_ARGUMENTS = {
    "logits int": (dict(logits=L.int()), "logits: got torch.int32"),
    "logits 3d": (dict(logits=L[None]), r"logits: got torch.float32 \[1, 4, 10\]"),
    "logits list": (dict(logits=[[1.0]]), "logits: got list"),
    "labels int32": (dict(labels=Y.int()), "labels: got torch.int32"),
    "labels length": (dict(labels=Y[:3]), r"labels: got torch.int64 \[3\].*wanted torch.int64 \[4\]"),
    "label too large": (dict(labels=torch.tensor([0, 1, 10, 0])), "labels: got 10 at row 2, wanted 0 <= label < 10"),
    "label in padding": (dict(labels=Y + 8, vocab_size=8), "labels: got 8 at row 0, wanted 0 <= label < 8"),
    "label negative": (dict(labels=Y - 1), "labels: got -1 at row 0"),
    "vocab_size 0": (dict(vocab_size=0), "vocab_size: got int 0"),
    "vocab_size 11": (dict(vocab_size=11), r"vocab_size: got int 11, wanted an int in \[1, 10\]"),
    "vocab_size float": (dict(vocab_size=9.0), "vocab_size: got float"),
    "temperature 0": (dict(temperature=0.0), "temperature: got float 0.0"),
    "temperature negative": (dict(temperature=-1), "temperature: got int -1"),
    "temperature nan": (dict(temperature=math.nan), "temperature: got float nan"),
    "temperature inf": (dict(temperature=math.inf), "temperature: got float inf"),
    "temperature too small": (dict(temperature=9.9e-7), r"temperature: got float 9.9e-07, wanted a float in \[1e-06"),
    "temperature too large": (dict(temperature=1000001), "temperature: got int 1000001, wanted.* instead of"),
    "temperature row": (dict(temperature=torch.tensor([1.0, 1, 0, 1])), "temperature: got 0.0 at row 2"),
    "temperature row too small": (dict(temperature=torch.tensor([1.0, 1, 1, 1e-14])), "got 9.99.*e-15 at row 3"),
    "temperature row too large": (dict(temperature=torch.tensor([1.0, 1e38, 1, 1])), "got 9.99.*e\\+37 at row 1"),
    "temperature row nan": (dict(temperature=torch.tensor([math.nan, 1, 1, 1])), "temperature: got nan at row 0"),
    "temperature length": (dict(temperature=torch.ones(3)), r"temperature: got torch.float32 \[3\]"),
    "temperature fp64": (dict(temperature=torch.ones(4).double()), "temperature: got torch.float64"),
    "temperature grad": (
        dict(temperature=torch.ones(4, requires_grad=True)),
        "temperature: got a tensor that requires",
    ),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_named(case):
    changed, message = BAD_ARGUMENTS[case]
    arguments = dict(logits=L, labels=Y) | changed
    with pytest.raises(ValueError, match=message):
        ops.logprob_entropy(arguments.pop("logits"), arguments.pop("labels"), **arguments)


def test_fp64_on_cuda_is_a_value_error():
    """In shapes alone, which needs no GPU."""
    with FakeTensorMode():
        logits = torch.empty(4, 10, dtype=torch.float64, device="cuda")
        labels = torch.empty(4, dtype=torch.int64, device="cuda")
        with pytest.raises(ValueError, match=r"logits: got torch.float64 .* on cuda.*, wanted fp32, bf16 or fp16"):
            ops.logprob_entropy(logits, labels)
