"""Log-probability and entropy of tokens from vocabulary-parallel logits. Formulas: csrc/logprob_entropy."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from pyrl.ops import _check, _library  # noqa: F401  (loading the library defines torch.ops.pyrl)
from pyrl.ops.device_flag import ValueErrors, device_flag

IGNORE = -100
TEMPERATURES = (1e-6, 1e6)
"""Beyond these the kernels' fp32 would overflow: csrc/logprob_entropy/rows.h, which has the same bounds."""
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def logprob_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    inplace_backward: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-prob of `labels` and entropy (nats) of softmax(logits / temperature), both differentiable in `logits`.

    Args:
        logits: [T, Vp/tp] fp32, bf16, fp16 or (on the CPU) fp64, equally wide on every rank of `group`; rank r owns the
            columns from r Vp/tp on. Any row stride; a last dimension that is not contiguous is copied.
        labels: int64 [T], global ids, the same on every rank. -100: the row is not read, outputs and gradient are 0.
        temperature: a float, or fp32 [T]; in [1e-6, 1e6]. It gets no gradient.
        vocab_size: columns at or above it are padding: never read, zero gradient. None: there is no padding.
        group: tensor-parallel group. One all-gather of four numbers a token forward, nothing backward.
        inplace_backward: write the gradient over the storage of `logits`, which nothing else may read after the forward
            pass; a second backward pass through the same graph is then an error.

    Returns:
        (logprobs, entropy): fp32 [T], or fp64 for fp64 logits; the same bits on every rank.

    Raises:
        ValueError: a wrong shape, dtype or device; a label outside [0, vocab_size) other than -100; a temperature
            outside [1e-6, 1e6]; a row that is read and holds NaN, +inf, or nothing but -inf. (A label on a -inf
            logit is no error: its log-prob is -inf.) What only the values tell is raised on the CPU; on CUDA, where
            nothing waits for the device, the row's outputs are NaN and the device flag is set (`pyrl.ops.device_flag`).
    """
    _check.tensor("logits", logits, _FLOATS, ("T", "Vp/tp"))
    _check.fp64_is_on_the_cpu("logits", logits)
    tokens, width = logits.shape
    _check.tensor("labels", labels, (torch.int64,), (tokens,), logits.device)
    columns = width * _check.group_size(group)
    vocab_size = columns if vocab_size is None else vocab_size
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or not 0 < vocab_size <= columns:
        raise _check.wrong("vocab_size", vocab_size, f"an int in [1, {columns}], the columns of all ranks together")
    temperature = _temperature(temperature, logits)
    if inplace_backward:
        _check_overwritable(logits)
    elif logits.stride(1) != 1:
        logits = logits.contiguous()
    return _LogprobEntropy.apply(logits, labels.contiguous(), temperature, vocab_size, group, inplace_backward)


def _temperature(value: float | torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """fp64 [1] or [T]."""
    low, high = TEMPERATURES
    wanted = f"a float in [{low:g}, {high:g}], or fp32 [{logits.shape[0]}] of them, on {logits.device}; for the argmax "
    wanted += "or a uniform draw, take that instead of a temperature near 0 or infinity"
    if not isinstance(value, torch.Tensor):
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise _check.wrong("temperature", value, wanted)
        return torch.full((1,), value, dtype=torch.float64, device=logits.device)
    _check.tensor("temperature", value, (torch.float32,), (logits.shape[0],), logits.device)
    if value.requires_grad:
        raise ValueError("temperature: got a tensor that requires grad, wanted one that does not: it gets no gradient")
    unfit = ~((value >= low) & (value <= high))
    if not value.is_cuda and unfit.any():
        row = int(unfit.nonzero()[0])
        raise ValueError(f"temperature: got {value[row].item()} at row {row}, wanted {wanted}")
    return value.double().contiguous()


def _check_overwritable(logits: torch.Tensor) -> None:
    if logits.is_leaf and logits.requires_grad:
        raise ValueError("inplace_backward: got logits that are a leaf, whose value the gradient would overwrite; "
                         "wanted the output of another operation, or inplace_backward=False")  # fmt: skip
    rows, width = logits.shape
    if logits.stride(1) != 1 or (rows > 1 and logits.stride(0) < width):
        raise ValueError(
            f"inplace_backward: got logits with strides {logits.stride()}, wanted rows that are contiguous and apart, "
            "or inplace_backward=False"
        )


class _LogprobEntropy(torch.autograd.Function):
    """Keeps the logits, lse (fp64) and entropy: 12 bytes a token beside what the model keeps anyway."""

    @staticmethod
    def forward(ctx, logits, labels, temperature, vocab_size, group, inplace_backward):
        width = logits.shape[1]
        start = 0 if group is None else dist.get_rank(group) * width
        stats = torch.ops.pyrl.logprob_entropy_stats(logits, labels, temperature, start, vocab_size)
        shards = _all_gather(stats, group) if _check.group_size(group) > 1 else stats.unsqueeze(0)
        del stats  # gathered: 16 bytes a token less beside the merge's outputs
        logprobs, entropy, lse = merge(shards, labels, temperature, vocab_size)
        ctx.save_for_backward(logits, labels, temperature, entropy, lse)
        ctx.vocab_start, ctx.vocab_size, ctx.inplace = start, vocab_size, inplace_backward
        ctx.set_materialize_grads(False)  # an entropy that is not used costs nothing backward
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logprobs, grad_entropy):
        logits, labels, temperature, entropy, lse = ctx.saved_tensors
        upstream = upstream_gradients(grad_logprobs, grad_entropy, like=entropy)
        rest = (logits, labels, temperature, entropy, lse, ctx.vocab_start, ctx.vocab_size)
        if not ctx.inplace:
            return torch.ops.pyrl.logprob_entropy_backward(*upstream, *rest), None, None, None, None, None
        torch.ops.pyrl.logprob_entropy_backward_(*upstream, *rest)
        torch.autograd.graph.increment_version(logits)  # so that another use of the old values is an error
        return logits.detach(), None, None, None, None, None


def upstream_gradients(
    grad_logprobs: torch.Tensor | None, grad_entropy: torch.Tensor | None, *, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As the kernels take them: contiguous, and None for an entropy that has no gradient."""
    grad_logprobs = torch.zeros_like(like) if grad_logprobs is None else grad_logprobs.contiguous()
    return grad_logprobs, None if grad_entropy is None else grad_entropy.contiguous()


def _all_gather(stats: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """[T, 4] on each rank -> [ranks, T, 4], in rank order."""
    ranks = dist.get_world_size(group)
    gathered = stats.new_empty((ranks * stats.shape[0], 4))
    # torch 2.13 renamed the collective and warns about the name that 2.10 knows.
    gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor
    gather(gathered, stats, group=group)
    return gathered.view(ranks, stats.shape[0], 4)


def merge(
    shards: torch.Tensor, labels: torch.Tensor, temperature: torch.Tensor, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logprobs, entropy, lse) of statistics [ranks, T, 4]. What only values tell raises on the CPU and sets the flag
    on a device. Every rank holds the same statistics and labels, so every rank does."""
    if not shards.is_cuda:
        return torch.ops.pyrl.logprob_entropy_merge_or_raise(shards, labels, temperature, vocab_size)
    logprobs, entropy, lse, bad_row = torch.ops.pyrl.logprob_entropy_merge(shards, labels, temperature)
    device_flag(bad_row.device).bitwise_or_((bad_row >= 0) * int(ValueErrors.BAD_ROW))
    return logprobs, entropy, lse


@torch.library.custom_op("pyrl::logprob_entropy_merge_or_raise", mutates_args=(), device_types="cpu")
def _merge_or_raise(
    shards: torch.Tensor, labels: torch.Tensor, temperature: torch.Tensor, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """An op of its own, for a compiled graph holds an op that raises but no branch on a value."""
    unfit = ((labels < 0) & (labels != IGNORE)) | (labels >= vocab_size)
    if unfit.any():
        row = int(unfit.nonzero()[0])
        raise ValueError(f"labels: got {labels[row].item()} at row {row}, wanted 0 <= label < {vocab_size} or {IGNORE}")
    logprobs, entropy, lse, bad_row = torch.ops.pyrl.logprob_entropy_merge(shards, labels, temperature)
    if (row := int(bad_row)) >= 0:
        held = _held(shards[:, row])
        raise ValueError(f"logits: got {held} in row {row}, wanted finite values or -inf, at least one of them finite")
    return logprobs, entropy, lse


def _held(stats: torch.Tensor) -> str:
    """What a row without softmax holds, told by its statistics [ranks, 4]."""
    largest, total = stats[:, 0].max().item(), stats[:, 1].sum().item()
    if largest == math.inf:
        return "+inf"
    return "NaN" if math.isnan(total) else "nothing but -inf"


@torch.library.register_fake("pyrl::logprob_entropy_stats")
def _(logits, labels, temperature, vocab_start, vocab_size):
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty((logits.shape[0], 4), dtype=dtype)


@torch.library.register_fake("pyrl::logprob_entropy_combine")
def _(stats, temperature):
    return stats.new_empty(stats.shape[1:])


@torch.library.register_fake("pyrl::logprob_entropy_merge")
def _(stats, labels, temperature):
    tokens = stats.shape[1]
    return (
        stats.new_empty((tokens,)),
        stats.new_empty((tokens,)),
        stats.new_empty((tokens,), dtype=torch.float64),
        stats.new_empty((), dtype=torch.int64),
    )


@_merge_or_raise.register_fake
def _(shards, labels, temperature, vocab_size):
    tokens = (shards.shape[1],)
    return shards.new_empty(tokens), shards.new_empty(tokens), shards.new_empty(tokens, dtype=torch.float64)


@torch.library.register_fake("pyrl::logprob_entropy_backward")
def _(grad_logprobs, grad_entropy, logits, labels, temperature, entropy, lse, vocab_start, vocab_size):
    return logits.new_empty(logits.shape)


@torch.library.register_fake("pyrl::logprob_entropy_backward_")
def _(grad_logprobs, grad_entropy, logits, labels, temperature, entropy, lse, vocab_start, vocab_size):
    return None


@torch.library.register_fake("pyrl::logprob_entropy_backward_out")
def _(grad_logprobs, grad_entropy, logits, labels, temperature, entropy, lse, vocab_start, vocab_size, out):
    return None
