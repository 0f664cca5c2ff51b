"""`linear_logprob_entropy` against log-softmax of the product in float64, one process.

Sizes by code path. T: 0, 1, an odd few, more rows than threads take at once. V: 1 (one chunk of one column); 17 (chunks
of 8, 8 and 1); 1000 (four chunks, the last one shorter); 9000 (chunks in multiples of 256).
"""

from __future__ import annotations

import itertools
import math
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pyrl import ops
from pyrl.ops import reference
from pyrl.ops.linear_logprob_entropy import _CHUNK_BYTES, chunk_columns

module = sys.modules["pyrl.ops.linear_logprob_entropy"]  # the package's attribute of this name is the function

SHAPES = [(0, 5, 17), (1, 1, 1), (7, 3, 1), (7, 24, 17), (257, 24, 1000), (33, 40, 9000)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NAMES = "logprobs", "entropy", "grad_hidden", "grad_weight"

# What a result may add to twice the error of the same computation in PyTorch, relative to the largest value of the
# reference (at least 1): the rounding of fp32 statistics, which are written per chunk and once for all chunks, and for
# gradients the rounding of their factors and their sum to the dtype of hidden states and weight.
STATISTICS_ROUNDING = {torch.float64: 100 * 2.0**-53, **dict.fromkeys(DTYPES[:3], 16 * 2.0**-24)}
GRADIENT_ROUNDING = {torch.float32: 2.0**-21, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11,
                     torch.float64: 100 * 2.0**-53}  # fmt: skip


def make_case(tokens, features, vocab, dtype, *, scale=3.0, seed=0):
    """Logits of standard deviation `scale`."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, features, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocab, features, generator=generator, dtype=torch.float64) * (scale / features**0.5)
    labels = torch.randint(0, vocab, (tokens,), generator=generator)
    upstream = torch.randn(2, tokens, generator=generator, dtype=torch.float64)
    return hidden.to(dtype), weight.to(dtype), labels, upstream


def unfused(hidden, weight, labels, *, dtype=torch.float64, **kwargs):
    """The product and its log-softmax in `dtype`."""
    return reference.logprob_entropy(hidden.to(dtype) @ weight.to(dtype).t(), labels, dtype=dtype, **kwargs)


def run(function, hidden, weight, labels, upstream, *, device="cpu", **kwargs):
    """(logprobs, entropy, gradient of hidden, gradient of weight), float64, computed on `device`."""
    leaves = [x.detach().clone().to(device).requires_grad_() for x in (hidden, weight)]
    kwargs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    outputs = function(*leaves, labels.to(device), **kwargs)
    gradients = torch.autograd.grad(outputs, leaves, [u.to(o) for u, o in zip(upstream, outputs, strict=True)])
    return [x.detach().double().cpu() for x in (*outputs, *gradients)]


def assert_as_exact_as_torch(hidden, weight, labels, upstream, device="cpu", **kwargs):
    dtype = hidden.dtype
    ours = run(ops.linear_logprob_entropy, hidden, weight, labels, upstream, device=device, **kwargs)
    exact = run(unfused, hidden, weight, labels, upstream, **kwargs)
    torchs = run(unfused, hidden, weight, labels, upstream, dtype=dtype, **kwargs)
    roundings = [STATISTICS_ROUNDING[dtype]] * 2 + [GRADIENT_ROUNDING[dtype]] * 2
    for name, got, want, same, rounding in zip(NAMES, ours, exact, torchs, roundings, strict=True):
        assert got.shape == want.shape
        if want.numel():
            allowed = 2 * (same - want).abs().max() + rounding * max(1.0, want.abs().max().item())
            assert (got - want).abs().max() <= allowed, (name, (got - want).abs().max().item(), allowed.item())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "features", "vocab"), SHAPES)
def test_matches_float64(tokens, features, vocab, dtype, device):
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("fp64 is the CPU's alone")
    assert_as_exact_as_torch(*make_case(tokens, features, vocab, dtype), device)


def test_output_and_gradient_dtypes():
    for dtype in DTYPES:
        hidden, weight, labels, _ = make_case(3, 5, 17, dtype)
        hidden.requires_grad_(), weight.requires_grad_()
        outputs = ops.linear_logprob_entropy(hidden, weight, labels)
        sum(outputs).sum().backward()
        assert {out.dtype for out in outputs} == {torch.float64 if dtype == torch.float64 else torch.float32}
        assert hidden.grad.dtype == weight.grad.dtype == dtype


@pytest.mark.parametrize("temperature", [0.6, 2.5, "per token"])
def test_temperature_is_part_of_the_function_and_of_its_gradient(temperature, device):
    case = make_case(67, 24, 1000, torch.float32)
    if temperature == "per token":
        temperature = torch.linspace(0.3, 3.0, 67)
    assert_as_exact_as_torch(*case, device, temperature=temperature)


class TestRoundingOfTheLogits:
    """Small integers times powers of two: products and sums are exact, so that only the rounding asked for is seen."""

    def make(self, dtype=torch.bfloat16):
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randint(-31, 32, (20, 16), generator=generator) / 8
        weight = torch.randint(-31, 32, (300, 16), generator=generator) / 16
        return hidden.to(dtype), weight.to(dtype), torch.randint(0, 300, (20,), generator=generator)

    def test_fp32_keeps_what_bf16_loses(self, device):
        hidden, weight, labels = self.make()
        logits = hidden.double() @ weight.double().t()
        assert (logits.bfloat16().double() != logits).float().mean() > 0.3
        want = reference.logprob_entropy(logits, labels)
        rounded = reference.logprob_entropy(logits.bfloat16(), labels)
        assert (want[0] - rounded[0]).abs().max() > 1e-2, "this case does not tell the two apart"
        got = run(ops.linear_logprob_entropy, hidden, weight, labels, torch.zeros(2, 20), device=device)
        for ours, exact in zip(got[:2], want, strict=True):
            assert torch.allclose(ours, exact, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    def test_bf16_is_an_engine_that_rounds(self, dtype, device):
        hidden, weight, labels = self.make(dtype)
        want = reference.logprob_entropy((hidden.double() @ weight.double().t()).bfloat16(), labels)
        rounding = {"device": device, "logits_dtype": "bf16"}
        got = run(ops.linear_logprob_entropy, hidden, weight, labels, torch.zeros(2, 20), **rounding)
        for ours, exact in zip(got[:2], want, strict=True):
            assert torch.allclose(ours, exact, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
    def test_bf16_gradient(self, dtype, device):
        """As of a product that is rounded: the gradient passes the rounding unchanged but for its own rounding."""
        hidden, weight, labels = self.make(dtype)
        upstream = torch.randn(2, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        rounding = {"device": device, "logits_dtype": "bf16"}
        ours = run(ops.linear_logprob_entropy, hidden, weight, labels, upstream, **rounding)
        leaves = [x.double().requires_grad_() for x in (hidden, weight)]
        logits = leaves[0] @ leaves[1].t()
        rounded = logits + (logits.bfloat16().double() - logits).detach()
        want = torch.autograd.grad(reference.logprob_entropy(rounded, labels), leaves, list(upstream))
        for got, exact in zip(ours[2:], want, strict=True):
            assert (got - exact).abs().max() <= 2.0**-8 * exact.abs().max()

    def test_the_gradient_is_formed_from_fp32_logits(self, device):
        """With one token the gradient of the weight is the logits' gradient times the hidden state: each of its entries
        is exact but for its own rounding, where logits rounded to bf16 would move p by 6%."""
        generator = torch.Generator().manual_seed(0)
        hidden = torch.ones(1, 1, dtype=torch.bfloat16)
        weight = (16 + 4 * torch.rand(300, 1, generator=generator)).bfloat16()
        hidden, weight = torch.cat((hidden, hidden), 1), torch.cat((weight, weight / 512), 1)
        case = hidden, weight, torch.tensor([7]), torch.tensor([[1.0], [0.5]], dtype=torch.float64)
        got, want = run(ops.linear_logprob_entropy, *case, device=device)[3], run(unfused, *case)[3]
        assert ((got - want).abs() <= 2.0**-8 * want.abs()).all()
        rounded = run(ops.linear_logprob_entropy, *case, logits_dtype="bf16")[3]
        assert not ((rounded - want).abs() <= 2.0**-8 * want.abs()).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_gradient_of_fp32_logits_is_rounded_once(dtype):
    """To the dtype of a GEMM's inputs, over rows of another stride, padding included."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(33, 1003, generator=generator)
    labels, temperature = torch.randint(0, 990, (33,), generator=generator), torch.tensor([0.7], dtype=torch.float64)
    labels[3] = -100
    upstream = torch.randn(2, 33, generator=generator)
    upstream[:, 5] = 0
    stats = torch.ops.pyrl.logprob_entropy_stats(logits, labels, temperature, 0, 990)
    _, entropy, lse, _ = torch.ops.pyrl.logprob_entropy_merge(stats[None], labels, temperature)
    arguments = *upstream, logits, labels, temperature, entropy, lse, 0, 990
    out = torch.full((33, 1008), 7.0, dtype=dtype)
    torch.ops.pyrl.logprob_entropy_backward_out(*arguments, out[:, :1003])
    assert torch.equal(out[:, :1003], torch.ops.pyrl.logprob_entropy_backward(*arguments).to(dtype))
    assert (out[:, 1003:] == 7).all()
    with pytest.raises(RuntimeError, match="fp32 logits, bf16 or fp16"):
        torch.ops.pyrl.logprob_entropy_backward_out(*arguments, torch.empty(33, 1003, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab_size", [990, 700, 1])
def test_padding_rows_are_never_read_and_get_no_gradient(dtype, vocab_size, device):
    """700 of 1000: a whole chunk of the rows is padding."""
    hidden, weight, labels, upstream = make_case(9, 24, 1000, dtype)
    labels = labels % vocab_size
    weight[vocab_size:] = torch.nan
    got = run(ops.linear_logprob_entropy, hidden, weight, labels, upstream, device=device, vocab_size=vocab_size)
    want = run(unfused, hidden, weight[:vocab_size], labels, upstream)
    assert (got[3][vocab_size:] == 0).all()
    got[3] = got[3][:vocab_size]
    for ours, exact, rounding in zip(got, want, [1e-5, 1e-5] + [4 * GRADIENT_ROUNDING[dtype]] * 2, strict=True):
        assert torch.allclose(ours, exact, rtol=0, atol=rounding * max(1.0, exact.abs().max().item()))


def test_ignored_rows_count_for_nothing():
    hidden, weight, labels, upstream = make_case(9, 24, 1000, torch.float32)
    labels[2], labels[8] = -100, -100
    expected = run(unfused, hidden, weight, labels, upstream)
    got = run(ops.linear_logprob_entropy, hidden, weight, labels, upstream)
    for row in (2, 8):
        assert got[0][row] == 0 and got[1][row] == 0 and (got[2][row] == 0).all()
    for ours, exact in zip(got, expected, strict=True):
        assert torch.allclose(ours, exact, atol=1e-4)


def test_minus_infinity():
    """A row of the weight that gives -inf for every token: probability and gradient 0, in chunks of their own too."""
    hidden, weight, labels, _ = make_case(5, 4, 1000, torch.float32)
    hidden = hidden.abs() + 0.1
    weight[::3] = -math.inf
    weight[250:500] = -math.inf
    got = ops.linear_logprob_entropy(hidden, weight, labels * 0 + 1)
    want = reference.logprob_entropy((hidden @ weight.t()).double(), labels * 0 + 1)
    for ours, exact in zip(got, want, strict=True):
        assert torch.allclose(ours.double(), exact, atol=1e-5)
    assert (ops.linear_logprob_entropy(hidden, weight, labels * 0 + 3)[0] == -math.inf).all()


@pytest.mark.parametrize(("value", "held"), [(math.nan, "NaN"), (math.inf, r"\+inf"), (-math.inf, "nothing but -inf")])
def test_a_row_that_has_no_softmax_is_named(value, held):
    hidden, weight, labels, _ = make_case(9, 4, 1000, torch.float32)
    weight = weight.abs() + 0.1
    hidden[4:6] = value
    with pytest.raises(ValueError, match=f"logits: got {held} in row 4"):
        ops.linear_logprob_entropy(hidden, weight, labels)


class TestUpstreamGradients:
    def test_each_token_has_its_own(self):
        hidden, weight, labels, _ = make_case(5, 24, 1000, torch.float64)
        for token in range(5):
            upstream = torch.zeros(2, 5, dtype=torch.float64)
            upstream[:, token] = torch.tensor([2.0, -3.0])
            got = run(ops.linear_logprob_entropy, hidden, weight, labels, upstream)
            for ours, exact in zip(got, run(unfused, hidden, weight, labels, upstream), strict=True):
                assert torch.allclose(ours, exact, atol=1e-12)
            assert (got[2].abs().sum(1) > 0).tolist() == [t == token for t in range(5)]

    @pytest.mark.parametrize("strides", ["zero", "two"])
    def test_strided(self, strides):
        case = make_case(33, 24, 100, torch.float64)
        upstream = torch.randn(33, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        upstream = upstream[:1, :2].expand(33, 2) if strides == "zero" else upstream[:, ::2]
        assert not upstream[:, 0].is_contiguous()
        got = run(ops.linear_logprob_entropy, *case[:3], upstream.unbind(1))
        for ours, exact in zip(got, run(unfused, *case[:3], upstream.unbind(1)), strict=True):
            assert torch.allclose(ours, exact, atol=1e-12)

    @pytest.mark.parametrize("used", [0, 1])
    def test_one_output_alone(self, used):
        hidden, weight, labels, upstream = make_case(5, 24, 1000, torch.float64)
        gradients = []
        for function in (ops.linear_logprob_entropy, unfused):
            leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
            (function(*leaves, labels)[used] * upstream[0]).sum().backward()
            gradients.append([leaf.grad for leaf in leaves])
        for ours, exact in zip(*gradients, strict=True):
            assert torch.allclose(ours, exact, atol=1e-12)


@pytest.mark.parametrize("which", ["hidden", "weight"])
def test_one_input_alone_wants_a_gradient(which):
    hidden, weight, labels, upstream = make_case(5, 24, 1000, torch.float64)
    wanted = run(unfused, hidden, weight, labels, upstream)[2 if which == "hidden" else 3]
    leaf = (hidden if which == "hidden" else weight).requires_grad_()
    outputs = ops.linear_logprob_entropy(hidden, weight, labels)
    assert torch.allclose(torch.autograd.grad(outputs, leaf, list(upstream))[0], wanted, atol=1e-12)


def test_without_any_gradient():
    hidden, weight, labels, _ = make_case(5, 24, 1000, torch.float32)
    with torch.no_grad():
        outputs = ops.linear_logprob_entropy(hidden.requires_grad_(), weight.requires_grad_(), labels)
    assert not any(out.requires_grad for out in outputs)


@pytest.mark.parametrize("layout", ["transposed", "row stride", "expanded"])
def test_layouts(layout):
    hidden, weight, labels, upstream = make_case(12, 24, 130, torch.float64)
    labels = torch.stack((labels, labels), 1)[:, 1]
    if layout == "transposed":
        views = [x.t().contiguous().t() for x in (hidden, weight)]
    elif layout == "row stride":
        views = [torch.cat((x, x), 1)[:, :24] for x in (hidden, weight)]
    else:
        hidden, weight = hidden[:1].expand(12, 24).contiguous(), weight[:1].expand(130, 24).contiguous()
        views = [hidden[:1].expand(12, 24), weight[:1].expand(130, 24)]
    assert not any(view.is_contiguous() for view in views)
    want = run(unfused, hidden, weight, labels, upstream)
    leaves = [view.detach().requires_grad_() for view in views]
    outputs = ops.linear_logprob_entropy(*leaves, labels)
    got = *outputs, *torch.autograd.grad(outputs, leaves, list(upstream))
    for ours, exact in zip(got, want, strict=True):
        assert torch.allclose(ours, exact, atol=1e-12)


class TestAccumulation:
    def test_the_gradient_of_hidden_is_summed_in_fp32(self, device, monkeypatch):
        """Equal logits: the label's row of the weight comes first and is large, and 512 chunks take the mean of all
        rows away from it by an eighth each, which a bf16 sum of about 64 would not notice."""
        monkeypatch.setattr(module, "chunk_columns", lambda *_: 2)
        hidden, weight = torch.zeros(3, 4).bfloat16(), (64.0 + torch.arange(1024 * 4).view(1024, 4) % 5).bfloat16()
        upstream = torch.tensor([[1.0], [0.0]]).expand(2, 3)
        labels = torch.zeros(3, dtype=torch.int64)
        got = run(ops.linear_logprob_entropy, hidden, weight, labels, upstream, device=device)[2]
        want = weight[0].double() - weight.double().mean(0)
        parts = [weight[0], *(-weight.double() / 1024).view(512, 2, 4).sum(1).bfloat16()]
        lossy = torch.zeros(4, dtype=torch.bfloat16)
        for part in parts:
            lossy += part
        assert (lossy.double() - want).abs().min() > 10, "this case does not tell the two apart"
        assert (got - want).abs().max() <= 64 * 2.0**-9  # 1 - p is rounded to bf16 once, for the GEMM

    def make_parameter(self, device="cpu", **attributes):
        hidden, weight, labels, upstream = (x.to(device) for x in make_case(16, 24, 1000, torch.bfloat16))
        parameter = torch.nn.Parameter(weight)
        parameter.main_grad = torch.full((1000, 24), 256.0, device=device)
        for name, value in attributes.items():
            setattr(parameter, name, value)
        return hidden.requires_grad_(), parameter, labels, upstream.float()

    def test_main_grad_is_added_to_in_fp32(self, device):
        """On 256 a bf16 sum would lose all but multiples of 2."""
        hidden, parameter, labels, upstream = self.make_parameter(device, grad_added_to_main_grad=False)
        wanted = run(unfused, *(x.cpu() for x in (hidden, parameter, labels, upstream)))[3]
        for _ in range(3):  # micro-batches
            torch.autograd.backward(ops.linear_logprob_entropy(hidden, parameter, labels), list(upstream))
            assert parameter.grad_added_to_main_grad is True
            assert parameter.grad.shape == parameter.shape  # Megatron's hooks want one; its values mean nothing
            parameter.grad = None
        got = parameter.main_grad.double().cpu() - 256
        assert (got - 3 * wanted).abs().max() <= 2.0**-8 * 3 * wanted.abs().max() + 3 * 2.0**-16
        assert hidden.grad is not None

    @pytest.mark.usefixtures("new_memory_is_nan")
    def test_a_weight_that_is_the_embedding_too_gets_zeros_to_add_to(self):
        hidden, parameter, labels, upstream = self.make_parameter(grad_added_to_main_grad=False, zero_out_wgrad=True)
        outputs = ops.linear_logprob_entropy(hidden, parameter, labels)
        torch.autograd.backward((*outputs, parameter[3].sum()), [*upstream, torch.tensor(5.0, dtype=torch.bfloat16)])
        want = torch.zeros(1000, 24)
        want[3] = 5
        assert torch.equal(parameter.grad.float(), want)
        assert (parameter.main_grad != 256).any()

    def test_main_grad_without_hooks(self):
        hidden, parameter, labels, upstream = self.make_parameter()
        torch.autograd.backward(ops.linear_logprob_entropy(hidden, parameter, labels), list(upstream))
        assert parameter.grad is None and (parameter.main_grad != 256).any()

    def test_padding_leaves_main_grad_alone(self):
        hidden, parameter, labels, upstream = self.make_parameter()
        outputs = ops.linear_logprob_entropy(hidden, parameter, labels % 700, vocab_size=700)
        torch.autograd.backward(outputs, list(upstream))
        assert (parameter.main_grad[700:] == 256).all() and (parameter.main_grad[:700] != 256).any()

    def test_main_grad_of_another_dtype_is_left_to_autograd(self):
        hidden, parameter, labels, upstream = self.make_parameter(grad_added_to_main_grad=False)
        parameter.main_grad = parameter.main_grad.bfloat16()
        wanted = run(unfused, *(x.cpu() for x in (hidden, parameter, labels, upstream)))[3]
        torch.autograd.backward(ops.linear_logprob_entropy(hidden, parameter, labels), list(upstream))
        assert parameter.grad_added_to_main_grad is False and (parameter.main_grad == 256).all()
        assert (parameter.grad.double() - wanted).abs().max() <= 2.0**-7 * wanted.abs().max()


class TestMemory:
    """Of what torch allocates, in bytes: T = 512, V = 20,000 and fp32 make 41 MB of logits."""

    TOKENS, FEATURES, VOCAB = 512, 16, 20000

    def allocations(self, function):
        """(largest, peak of what is held) while `function` runs."""
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            kept = function()
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
        del kept
        return max(sizes), max(itertools.accumulate(sizes))

    def case(self, dtype):
        hidden, weight, labels, _ = make_case(self.TOKENS, self.FEATURES, self.VOCAB, dtype)
        return hidden.requires_grad_(), weight.requires_grad_(), labels

    @pytest.mark.parametrize("logits_dtype", ["fp32", "bf16"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_the_logits_are_never_held(self, dtype, logits_dtype):
        case = self.case(dtype)
        logits = self.TOKENS * self.VOCAB * 4
        chunk = self.TOKENS * chunk_columns(self.TOKENS, self.VOCAB, 2 if logits_dtype == "bf16" else 4)
        largest, peak = self.allocations(lambda: ops.linear_logprob_entropy(*case, logits_dtype=logits_dtype))
        outputs = ops.linear_logprob_entropy(*case, logits_dtype=logits_dtype)
        largest_backward, peak_backward = self.allocations(lambda: torch.autograd.grad(outputs[0].sum(), case[:2]))
        # fp32 chunk, and in bf16 its copy; on a CPU, which has no mixed GEMM, fp32 copies of both factors of a product
        buffers = chunk * (4 + 2) + 2 * self.TOKENS * self.VOCAB // 4
        weight_bytes = self.VOCAB * self.FEATURES * 4
        assert 0 < largest <= 4 * chunk and largest_backward <= 4 * chunk
        assert peak <= buffers + weight_bytes < 0.75 * logits
        assert peak_backward <= buffers + 4 * chunk + 2 * weight_bytes < logits

    def test_the_measurement_sees_logits_that_are_held(self):
        hidden, weight, labels = self.case(torch.float32)
        largest, peak = self.allocations(lambda: ops.logprob_entropy(hidden @ weight.t(), labels))
        assert largest == self.TOKENS * self.VOCAB * 4 <= peak

    def test_only_the_inputs_and_12_bytes_a_token_are_kept(self):
        """Whether the entropy is used or not."""
        saved = []
        case = self.case(torch.float32)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
            ops.linear_logprob_entropy(*case)
        others = [x for x in saved if not any(x.data_ptr() == y.data_ptr() for y in case)]
        assert sum(x.nbytes for x in others) == 12 * self.TOKENS + 8  # lse fp64, entropy fp32; and one temperature


@pytest.mark.parametrize(
    ("tokens", "columns", "itemsize", "wanted"),
    [
        (8192, 131072, 4, 2048),  # 64 MiB
        (8192, 131072, 2, 4096),
        (8192, 152064, 4, 2048),  # 75 chunks, the last one of 512
        (8192, 19008, 4, 2048),
        (1024, 152064, 4, 15360),  # 10 chunks
        (1024, 19008, 4, 4864),  # a quarter of the shard
        (200_000, 152064, 4, 2048),  # not less, whatever the bytes
        (1, 151936, 4, 38144),
        (7, 17, 4, 8),
        (7, 1, 4, 8),
        (0, 1000, 4, 256),
        (5, 0, 4, 8),
    ],
)
def test_width_of_chunks(tokens, columns, itemsize, wanted):
    got = chunk_columns(tokens, columns, itemsize)
    assert got == wanted
    assert got % 8 == 0
    if columns >= 32:
        assert got <= -(-columns // 4) + 256 and (got <= 2048 + 256 or tokens * got * itemsize <= 1.1 * _CHUNK_BYTES)


def test_chunks_do_not_show(monkeypatch):
    """The same function for any width of chunk, and to the bit for one width."""
    case = make_case(33, 24, 1000, torch.float32)
    want = run(ops.linear_logprob_entropy, *case)
    assert all(torch.equal(a, b) for a, b in zip(run(ops.linear_logprob_entropy, *case), want, strict=True))
    for columns in (8, 1000, 1024):
        monkeypatch.setattr(module, "chunk_columns", lambda *_, columns=columns: columns)
        for got, exact in zip(run(ops.linear_logprob_entropy, *case), want, strict=True):
            assert torch.allclose(got, exact, rtol=0, atol=1e-5 * max(1.0, exact.abs().max().item()))


@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_extreme_logits(offset):
    """An offset of all logits, given by a feature that is 1 everywhere, costs entropy no digits."""
    hidden, weight, labels, _ = make_case(33, 8, 1000, torch.float64)
    hidden[:, 0], weight[:, 0] = 1.0, offset
    logprobs, entropy = ops.linear_logprob_entropy(hidden, weight, labels)
    want = unfused(hidden, weight, labels)
    assert torch.allclose(logprobs, want[0], atol=1e-9) and torch.allclose(entropy, want[1], atol=1e-9)
    rounded = ops.linear_logprob_entropy(hidden.float(), weight.float(), labels)[1]
    assert (rounded >= 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradcheck(temperature):
    hidden, weight, labels, _ = make_case(4, 3, 37, torch.float64)
    labels = labels.clamp(max=32)
    labels[1] = -100
    assert torch.autograd.gradcheck(
        lambda h, w: ops.linear_logprob_entropy(h, w, labels, temperature=temperature, vocab_size=33),
        (hidden.requires_grad_(), weight.requires_grad_()),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype):
    hidden, weight, labels, upstream = make_case(6, 8, 40, dtype)
    labels, temperature = labels.clamp(max=37), torch.tensor([0.7], dtype=torch.float64)
    forward = hidden, weight, labels, temperature, 0, 38, dtype == torch.bfloat16
    stats = torch.ops.pyrl.linear_logprob_entropy_stats(*forward)
    _, entropy, lse, _ = torch.ops.pyrl.logprob_entropy_merge(stats[None], labels, temperature)
    torch.library.opcheck(torch.ops.pyrl.linear_logprob_entropy_stats, forward)
    torch.library.opcheck(torch.ops.pyrl.logprob_entropy_combine, (stats[None], temperature))
    for main_grad, wants_weight in ((None, True), (torch.zeros(40, 8), False)):
        upstream_entropy = upstream[1].float() if wants_weight else None
        arguments = upstream[0].float(), upstream_entropy, *forward[:4], entropy, lse, main_grad, *forward[4:], True
        torch.library.opcheck(torch.ops.pyrl.linear_logprob_entropy_backward, (*arguments, wants_weight))
    logits = (hidden @ weight.t()).float()
    rest = *upstream.float(), logits, labels, temperature, entropy, lse, 0, 38, torch.empty(6, 40, dtype=dtype)
    torch.library.opcheck(torch.ops.pyrl.logprob_entropy_backward_out, rest)


def test_compiles_to_one_graph():
    hidden, weight, labels, _ = make_case(6, 8, 40, torch.float32)

    def loss(h, w):
        logprobs, entropy = ops.linear_logprob_entropy(h * 2, w * 0.5, labels)
        return (logprobs - 0.1 * entropy).sum()

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        gradients.append(torch.autograd.grad(function(*leaves), leaves))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_two_runs_give_the_same_bits(device):
    case = make_case(257, 24, 9000, torch.bfloat16)
    first, second = (run(ops.linear_logprob_entropy, *case, device=device) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


X, W, Y = torch.zeros(4, 3), torch.zeros(10, 3), torch.zeros(4, dtype=torch.int64)
BAD_ARGUMENTS = {
    "hidden int": (dict(hidden=X.int()), "hidden: got torch.int32"),
    "hidden 3d": (dict(hidden=X[None]), r"hidden: got torch.float32 \[1, 4, 3\]"),
    "weight features": (dict(weight=W[:, :2]), r"weight: got torch.float32 \[10, 2\].*wanted .* \[Vp/tp, 3\]"),
    "weight dtype": (dict(weight=W.bfloat16()), "weight: got torch.bfloat16"),
    "labels length": (dict(labels=Y[:3]), r"labels: got torch.int64 \[3\]"),
    "label too large": (dict(labels=Y + 10), "labels: got 10 at row 0, wanted 0 <= label < 10"),
    "label in padding": (dict(labels=Y + 8, vocab_size=8), "labels: got 8 at row 0, wanted 0 <= label < 8"),
    "vocab_size 11": (dict(vocab_size=11), r"vocab_size: got int 11, wanted an int in \[1, 10\]"),
    "temperature 0": (dict(temperature=0.0), "temperature: got float 0.0"),
    "temperature row": (dict(temperature=torch.tensor([1.0, 1, -1, 1])), "temperature: got -1.0 at row 2"),
    "temperature too small": (dict(temperature=1e-14), "temperature: got float 1e-14, wanted a float in"),
    "temperature row too large": (dict(temperature=torch.tensor([1.0, 1, 1e38, 1])), "got 9.99.*e\\+37 at row 2"),
    "logits_dtype": (dict(logits_dtype="fp16"), "logits_dtype: got str 'fp16', wanted fp32 or"),
    "bf16 of fp64": (dict(hidden=X.double(), weight=W.double(), logits_dtype="bf16"), "logits_dtype: got str 'bf16'"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_named(case):
    changed, message = BAD_ARGUMENTS[case]
    arguments = dict(hidden=X, weight=W, labels=Y) | changed
    with pytest.raises(ValueError, match=message):
        ops.linear_logprob_entropy(**arguments)


def test_fp64_on_cuda_is_a_value_error():
    """In shapes alone, which needs no GPU."""
    with FakeTensorMode():
        hidden, weight = (torch.empty(n, 3, dtype=torch.float64, device="cuda") for n in (4, 10))
        with pytest.raises(ValueError, match=r"hidden: got torch.float64 .* on cuda.*, wanted fp32, bf16 or fp16"):
            ops.linear_logprob_entropy(hidden, weight, torch.empty(4, device="cuda").long())
