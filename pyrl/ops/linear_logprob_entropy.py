"""Log-probability and entropy of tokens from hidden states and a vocabulary-parallel LM head, without the logits.

The head's weight is cut into chunks of the vocabulary. Forward, each chunk's logits are one GEMM and one pass of the
row kernel, which leaves 16 bytes a token; chunks merge as ranks do. Backward, each chunk's logits are computed again,
turned into their gradient, and used in two GEMMs: one adds to the gradient of the hidden states (fp32), one is that
chunk's rows of the gradient of the weight, each written once. Formulas: csrc/logprob_entropy.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from pyrl.ops import _check
from pyrl.ops.logprob_entropy import _all_gather, _temperature, merge, upstream_gradients

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_CHUNK_BYTES = 64 * 2**20
_MIN_COLUMNS = 2048
_MIN_CHUNKS = 4


def linear_logprob_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    logits_dtype: str = "fp32",
    sum_hidden_grad: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`logprob_entropy(hidden @ weight.t(), labels)`, differentiable in both factors, never holding [T, Vp/tp].

    Args:
        hidden: [T, H] fp32, bf16, fp16 or (CPU) fp64, the same on every rank of `group`.
        weight: [Vp/tp, H] of the same dtype; rank r owns the rows from r Vp/tp on. Where it has a `main_grad` of fp32
            (fp64 for fp64), its gradient is added there as Megatron's gradient accumulation fusion does:
            `grad_added_to_main_grad` is set where it exists, and what autograd is given then is a placeholder.
        labels, temperature, vocab_size, group: as in `logprob_entropy`.
        logits_dtype: "fp32": the products of bf16 or fp16 are summed in fp32 and stay so. "bf16": logits are rounded to
            bf16, as by an engine that rounds them.
        sum_hidden_grad: sum the gradient of `hidden` over `group`, in fp32. False: the caller does, as sequence
            parallelism's reduce-scatter.

    Returns:
        (logprobs, entropy): fp32 [T], or fp64 for fp64 input; the same bits on every rank.

    Raises:
        ValueError: as `logprob_entropy`.
    """
    _check.tensor("hidden", hidden, _FLOATS, ("T", "H"))
    _check.fp64_is_on_the_cpu("hidden", hidden)
    tokens, features = hidden.shape
    _check.tensor("weight", weight, (hidden.dtype,), ("Vp/tp", features), hidden.device)
    _check.tensor("labels", labels, (torch.int64,), (tokens,), hidden.device)
    columns = weight.shape[0] * _check.group_size(group)
    vocab_size = columns if vocab_size is None else vocab_size
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or not 0 < vocab_size <= columns:
        raise _check.wrong("vocab_size", vocab_size, f"an int in [1, {columns}], the rows of all ranks together")
    if logits_dtype not in ("fp32", "bf16") or (logits_dtype == "bf16" and hidden.dtype == torch.float64):
        raise _check.wrong("logits_dtype", logits_dtype, 'fp32 or, for hidden states that are not fp64, "bf16"')
    temperature = _temperature(temperature, hidden)
    rounds, sums = logits_dtype == "bf16", sum_hidden_grad and _check.group_size(group) > 1
    return _LinearLogprobEntropy.apply(
        hidden, weight, labels.contiguous(), temperature, vocab_size, group, rounds, sums
    )


def chunk_columns(tokens: int, columns: int, itemsize: int) -> int:
    """Columns of a chunk of the logits of `tokens` rows, `itemsize` bytes each.

    A chunk has 64 MiB, so that its GEMM fills a large GPU a few times over and little memory is held; but at least 2048
    columns, since each chunk reads hidden states and reads and writes their fp32 gradient once, which below about 1000
    columns takes longer than the GEMM; and never more than a quarter of the shard. The shard is cut evenly, in
    multiples of 256 (of 8 where chunks are small) for the sake of the GEMM's tiles and of 16-byte loads.
    """
    widest = max(_CHUNK_BYTES // (max(1, tokens) * itemsize), _MIN_COLUMNS)
    widest = max(1, min(widest, -(-columns // _MIN_CHUNKS)))
    even = -(-columns // -(-columns // widest)) if columns else 1
    unit = 256 if widest >= _MIN_COLUMNS else 8
    return -(-even // unit) * unit


class _LinearLogprobEntropy(torch.autograd.Function):
    """Keeps hidden states, weight, lse (fp64) and entropy."""

    @staticmethod
    def forward(ctx, hidden, weight, labels, temperature, vocab_size, group, rounds, sum_hidden_grad):
        start = 0 if group is None else dist.get_rank(group) * weight.shape[0]
        stats = torch.ops.pyrl.linear_logprob_entropy_stats(
            hidden, weight, labels, temperature, start, vocab_size, rounds
        )
        shards = _all_gather(stats, group) if _check.group_size(group) > 1 else stats.unsqueeze(0)
        logprobs, entropy, lse = merge(shards, labels, temperature, vocab_size)
        ctx.save_for_backward(hidden, weight, labels, temperature, entropy, lse)
        ctx.vocab_start, ctx.vocab_size, ctx.rounds = start, vocab_size, rounds
        ctx.group = group if sum_hidden_grad else None
        ctx.set_materialize_grads(False)  # an entropy that is not used costs nothing backward
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logprobs, grad_entropy):
        hidden, weight, labels, temperature, entropy, lse = ctx.saved_tensors
        wants_hidden, wants_weight, *_ = ctx.needs_input_grad
        main_grad = _main_grad(weight) if wants_weight else None
        upstream = upstream_gradients(grad_logprobs, grad_entropy, like=entropy)
        grad_hidden, grad_weight = torch.ops.pyrl.linear_logprob_entropy_backward(
            *upstream, hidden, weight, labels, temperature, entropy, lse,
            main_grad, ctx.vocab_start, ctx.vocab_size, ctx.rounds, wants_hidden, wants_weight and main_grad is None,
        )  # fmt: skip
        if ctx.group is not None and wants_hidden:
            dist.all_reduce(grad_hidden, group=ctx.group)
        grad_hidden = grad_hidden.to(hidden.dtype) if wants_hidden else None
        if main_grad is not None:
            grad_weight = _placeholder(weight)
        return grad_hidden, grad_weight if wants_weight else None, None, None, None, None, None, None


def _main_grad(weight: torch.Tensor) -> torch.Tensor | None:
    main_grad = getattr(weight, "main_grad", None)
    return main_grad if main_grad is not None and main_grad.dtype == _wide(weight.dtype) else None


def _placeholder(weight: torch.Tensor) -> torch.Tensor | None:
    """What Megatron's hooks want to see of a gradient that is in `main_grad` already; zeros where the weight is the
    embedding too, for autograd adds the embedding's gradient to it."""
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    weight.grad_added_to_main_grad = True
    return torch.zeros_like(weight) if getattr(weight, "zero_out_wgrad", False) else torch.empty_like(weight)


@torch.library.custom_op("pyrl::linear_logprob_entropy_stats", mutates_args=())
def _stats(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    temperature: torch.Tensor,
    vocab_start: int,
    vocab_size: int,
    rounds: bool,
) -> torch.Tensor:
    """[T, 4]: m, S, R, t of this rank's columns, as `logprob_entropy_stats` gives them from logits."""
    chunks = _Chunks(hidden, weight, vocab_start, vocab_size, rounds)
    stats = [
        torch.ops.pyrl.logprob_entropy_stats(chunks.logits(begin, end), labels, temperature, vocab_start + begin,
                                             vocab_size)
        for begin, end in chunks.ranges
    ]  # fmt: skip
    if not stats:  # nothing but padding
        nothing = hidden.new_zeros((hidden.shape[0], 4), dtype=_wide(hidden.dtype))
        nothing[:, 0] = -torch.inf  # filled on the device: a tensor of Python numbers would wait for it
        return nothing
    return torch.ops.pyrl.logprob_entropy_combine(torch.stack(stats), temperature)


@_stats.register_fake
def _(hidden, weight, labels, temperature, vocab_start, vocab_size, rounds):
    return hidden.new_empty((hidden.shape[0], 4), dtype=_wide(hidden.dtype))


@torch.library.custom_op("pyrl::linear_logprob_entropy_backward", mutates_args=("main_grad",))
def _backward(
    grad_logprobs: torch.Tensor,
    grad_entropy: torch.Tensor | None,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    temperature: torch.Tensor,
    entropy: torch.Tensor,
    lse: torch.Tensor,
    main_grad: torch.Tensor | None,
    vocab_start: int,
    vocab_size: int,
    rounds: bool,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient of hidden, fp32, of this rank's columns alone; gradient of weight), empty where not wanted. Where there
    is a `main_grad`, the gradient of weight is added to it."""
    chunks = _Chunks(hidden, weight, vocab_start, vocab_size, rounds)
    grad_hidden = hidden.new_empty(hidden.shape if wants_hidden else (0,), dtype=_wide(hidden.dtype))
    grad_weight = weight.new_empty(weight.shape if wants_weight else (0,))
    for begin, end in chunks.ranges:
        grad_logits = chunks.logits(begin, end)
        grad_logits = chunks.gradient(
            grad_logits, grad_logprobs, grad_entropy, labels, temperature, entropy, lse, vocab_start + begin, vocab_size
        )
        if wants_hidden and begin == 0:
            _matmul(grad_logits, weight[begin:end], out=grad_hidden)
        elif wants_hidden:
            _add_matmul(grad_hidden, grad_logits, weight[begin:end])
        if main_grad is not None:
            _add_matmul(main_grad[begin:end], grad_logits.t(), hidden)
        elif wants_weight:
            _matmul(grad_logits.t(), hidden, out=grad_weight[begin:end])
    if wants_hidden and not chunks.ranges:
        grad_hidden.zero_()
    if wants_weight:
        grad_weight[chunks.valid :].zero_()
    return grad_hidden, grad_weight


@_backward.register_fake
def _(
    grad_logprobs, grad_entropy, hidden, weight, labels, temperature, entropy, lse, main_grad, vocab_start, vocab_size,
    rounds, wants_hidden, wants_weight,
):  # fmt: skip
    return (
        hidden.new_empty(hidden.shape if wants_hidden else (0,), dtype=_wide(hidden.dtype)),
        weight.new_empty(weight.shape if wants_weight else (0,)),
    )


class _Chunks:
    """The logits of one rank, a chunk of columns at a time, in buffers that are used again for the next."""

    def __init__(
        self, hidden: torch.Tensor, weight: torch.Tensor, vocab_start: int, vocab_size: int, rounds: bool
    ) -> None:
        self._hidden, self._weight = hidden, weight
        self.valid = min(max(vocab_size - vocab_start, 0), weight.shape[0])
        """Columns that are not padding."""
        self._wide = _wide(hidden.dtype)
        self._dtype = torch.bfloat16 if rounds else self._wide
        self._columns = chunk_columns(hidden.shape[0], self.valid, self._dtype.itemsize)
        self.ranges = [(b, min(b + self._columns, self.valid)) for b in range(0, self.valid, self._columns)]
        self._buffers: dict[torch.dtype, torch.Tensor] = {}

    def logits(self, begin: int, end: int) -> torch.Tensor:
        """[T, end - begin], valid until the next call."""
        weight = self._weight[begin:end].t()
        if self._dtype == self._hidden.dtype or self._dtype == self._wide:
            return _matmul(self._hidden, weight, out=self._buffer(self._dtype, end - begin))
        logits = _matmul(self._hidden, weight, out=self._buffer(self._wide, end - begin))
        return self._buffer(self._dtype, end - begin).copy_(logits)

    def gradient(self, logits, grad_logprobs, grad_entropy, labels, temperature, entropy, lse, start, vocab_size):
        """Of the logits, rounded once to the dtype of hidden states and weight, which a GEMM then takes."""
        rest = (grad_logprobs, grad_entropy, logits, labels, temperature, entropy, lse, start, vocab_size)
        if logits.dtype == self._hidden.dtype:
            torch.ops.pyrl.logprob_entropy_backward_(*rest)
            return logits
        out = self._buffer(self._hidden.dtype, logits.shape[1])
        if logits.dtype == torch.float32:
            torch.ops.pyrl.logprob_entropy_backward_out(*rest, out)
            return out
        torch.ops.pyrl.logprob_entropy_backward_(*rest)
        return out.copy_(logits)

    def _buffer(self, dtype: torch.dtype, columns: int) -> torch.Tensor:
        """Rows are as far apart as those of a full chunk, so that every row is aligned."""
        if dtype not in self._buffers:
            self._buffers[dtype] = self._hidden.new_empty((self._hidden.shape[0], self._columns), dtype=dtype)
        return self._buffers[dtype][:, :columns]


def _wide(dtype: torch.dtype) -> torch.dtype:
    """In which statistics and sums of products are kept."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _matmul(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    """out = a b, summed in fp32 (fp64) and rounded once to the dtype of `out`: that of a and b, or fp32."""
    if a.dtype == out.dtype and (a.is_cuda or a.dtype == _wide(a.dtype)):
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    product = torch.mm(a.float(), b.float(), out=out if out.dtype == torch.float32 else None)
    return out if product is out else out.copy_(product)


def _add_matmul(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total += a b; `total` fp32 (fp64), a and b of any one dtype."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.float(), b.float())
