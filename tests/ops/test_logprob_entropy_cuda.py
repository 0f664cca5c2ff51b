"""`logprob_entropy` on a CUDA device: the cases of test_logprob_entropy.py that depend on the kernel."""

from __future__ import annotations

import math

import pytest
import torch

from pyrl import ops
from pyrl.ops import device_flag, reference
from tests.ops.test_logprob_entropy import SHAPES, Shifted, assert_as_exact_as_torch, make_case, run

pytestmark = pytest.mark.cuda

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def on_cuda(*arguments):
    return [argument.cuda() for argument in arguments]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "vocab"), SHAPES)
def test_matches_float64(tokens, vocab, dtype):
    assert_as_exact_as_torch(*on_cuda(*make_case(tokens, vocab, dtype)))


@pytest.mark.parametrize("temperature", [0.6, 2.5, "per token"])
def test_temperature(temperature):
    temperature = torch.linspace(0.3, 3.0, 67).cuda() if temperature == "per token" else temperature
    assert_as_exact_as_torch(*on_cuda(*make_case(67, 1000, torch.float32)), temperature=temperature)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_peaked_flat_and_masked_rows(dtype):
    offset = 3e4 if dtype == torch.float16 else 1e4
    for shift, scale in ((offset, 3.0), (-offset, 3.0), (0.0, 0.0), (0.0, 1000.0)):
        logits, labels, upstream = make_case(33, 1003, torch.float64, scale=scale)
        assert_as_exact_as_torch(*on_cuda((logits + shift).to(dtype), labels, upstream))
    logits, labels, upstream = make_case(5, 3000, dtype)
    logits[:, ::3] = -torch.inf
    logits[1, :2500] = -torch.inf
    labels = torch.tensor([1, 2999, 1, 4, 5])
    assert_as_exact_as_torch(*on_cuda(logits, labels, upstream))
    logprobs, entropy, gradient = run(ops.logprob_entropy, *on_cuda(logits, torch.full((5,), 3), upstream))
    assert (logprobs == -torch.inf).all() and entropy.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padding_ignored_rows_and_rows_without_gradient(dtype):
    logits, labels, upstream = on_cuda(*make_case(9, 1000, dtype))
    labels = labels.clamp(max=989)
    labels[2], upstream[:, 4] = -100, 0
    expected = run(reference.logprob_entropy, logits[:, :990].double(), labels, upstream)
    logits[:, 990:], logits[2] = torch.nan, torch.nan
    logprobs, entropy, gradient = run(ops.logprob_entropy, logits, labels, upstream, vocab_size=990)
    assert (gradient[:, 990:] == 0).all() and (gradient[[2, 4]] == 0).all() and logprobs[2] == entropy[2] == 0
    torch.testing.assert_close(logprobs, expected[0], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(entropy, expected[1], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(gradient[:, :990], expected[2], rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("layout", ["transposed", "row stride", "offset"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(layout, dtype):
    """Rows whose first column lies anywhere in 16 bytes."""
    logits, labels, upstream = on_cuda(*make_case(12, 1301, dtype))
    if layout == "transposed":
        view = logits.t().contiguous().t()
    elif layout == "row stride":
        view = torch.zeros(12, 2003, dtype=dtype, device="cuda")[:, :1301].copy_(logits)
    else:
        view = torch.zeros(12 * 1301 + 3, dtype=dtype, device="cuda")[3:].view(12, 1301).copy_(logits)
    assert_as_exact_as_torch(view, labels, upstream)
    x = view.detach().requires_grad_()
    outputs = ops.logprob_entropy(x, labels)
    gradient = torch.autograd.grad(outputs, x, list(upstream.float()))[0].double()
    reference_gradient = run(reference.logprob_entropy, logits.double(), labels, upstream)[2]
    torch.testing.assert_close(gradient, reference_gradient, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_the_gradient_over_the_logits_and_two_runs_have_the_same_bits():
    logits, labels, upstream = on_cuda(*make_case(257, 32000, torch.bfloat16))
    expected = run(ops.logprob_entropy, logits, labels, upstream)
    assert all(map(torch.equal, expected, run(ops.logprob_entropy, logits, labels, upstream)))
    leaf = logits.clone().requires_grad_()
    x = leaf * 1
    torch.autograd.backward(ops.logprob_entropy(x, labels, inplace_backward=True), list(upstream.float()))
    assert torch.equal(x.detach().double(), expected[2]) and torch.equal(leaf.grad.double(), expected[2])


def test_rows_further_apart_than_int32_counts():
    logits, labels, upstream = on_cuda(*make_case(2, 100, torch.bfloat16))
    view = torch.empty(2**31 + 100, dtype=torch.bfloat16, device="cuda").as_strided((2, 100), (2**31, 1)).copy_(logits)
    expected = run(ops.logprob_entropy, logits, labels, upstream)
    leaf = torch.zeros_like(logits).requires_grad_()
    outputs = ops.logprob_entropy(Shifted.apply(leaf, view), labels, inplace_backward=True)
    torch.autograd.backward(outputs, list(upstream.float()))
    for got, want in zip((*outputs, leaf.grad), expected, strict=True):
        assert torch.equal(got.detach().double(), want)


def test_what_is_saved():
    """12 bytes a token beside the logits, labels and temperature."""
    logits, labels, _ = on_cuda(*make_case(512, 4096, torch.bfloat16))
    x = logits.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.logprob_entropy(x, labels)
    others = [t for t in saved if t.data_ptr() not in (x.data_ptr(), labels.data_ptr())]
    assert sum(t.nbytes for t in others) == 12 * 512 + 8


def test_a_graph_replays_on_new_logits_and_nothing_waits():
    logits, labels, upstream = on_cuda(*make_case(64, 5000, torch.bfloat16))
    device_flag.take_errors(logits.device)

    def step(x):
        outputs = ops.logprob_entropy(x, labels, temperature=0.7)
        return (*outputs, torch.autograd.grad(outputs, x, list(upstream.float()))[0])

    static = logits.clone().requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(static)
    fresh = make_case(64, 5000, torch.bfloat16, seed=1)[0].cuda()
    with torch.no_grad():
        static.copy_(fresh)
    graph.replay()
    for got, want in zip(results, step(fresh.requires_grad_()), strict=True):
        assert torch.equal(got, want)
    assert device_flag.take_errors(logits.device) == []


@pytest.mark.parametrize("what", ["nan", "+inf", "-inf", "label", "temperature 1e-14", "temperature 1e38"])
def test_a_bad_value_sets_the_flag_and_its_row_is_nan(what):
    logits, labels, _ = on_cuda(*make_case(9, 1000, torch.float32))
    temperature = torch.ones(9, device="cuda")
    device_flag.take_errors(logits.device)
    ops.logprob_entropy(logits, labels, temperature=temperature)
    assert device_flag.take_errors(logits.device) == []
    if what == "label":
        labels[4] = 1000
    elif what.startswith("temperature"):
        temperature[4] = float(what.split()[1])
    elif what == "-inf":
        logits[4] = -math.inf
    else:
        logits[4, 500] = float(what)
    logprobs, _ = ops.logprob_entropy(logits, labels, temperature=temperature)
    (message,) = device_flag.take_errors(logits.device)
    assert message.startswith("logits, labels, temperature: got a row")
    assert not logprobs[4].isfinite() and logprobs[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()
