"""The policy's surrogate loss and its gradient, in one pass over the tokens. Formulas: csrc/policy_loss."""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from pyrl.ops import _check, _library  # noqa: F401  (loading the library defines torch.ops.pyrl)

SUMS = ("selected_tokens", "ratio_sum", "approx_kl_sum", "clipped_high_tokens", "clipped_low_tokens", "kl_penalty_sum")
"""Names of the kernel's sums, in its order (surrogate::Sum of the C++ header)."""
_FLOATS = (torch.float32, torch.float64)


class PolicyLoss(NamedTuple):
    loss: torch.Tensor
    """[T], differentiable in the log-probs; 0 where masked."""
    binds: torch.Tensor
    """bool [T]: a clip bound takes the token's gradient away; false where masked."""
    sums: dict[str, torch.Tensor]
    """By the names of `SUMS`, fp64 scalars over the valid tokens. `approx_kl_sum`: r - 1 - d, the k3 estimate of
    KL(old || new)."""


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    clip_ratio_low: float | None = None,
    clip_ratio_high: float | None = None,
    clip_ratio_c: float | None = None,
    selected: torch.Tensor | None = None,
    kl_cov_coef: float | None = None,
) -> PolicyLoss:
    """max(-r A, -clip(r, 1 - low, 1 + high) A) of each token, to be minimised; d = logprob - old_logprob, r = exp(d).

    Plain ratio: no bound. `ppo_clip`, `clip_higher`: both bounds. `clip_cov`: bounds and `selected`. `kl_cov`:
    `selected` and `kl_cov_coef`.

    Args:
        logprobs: fp32 or fp64 [T], with gradient.
        old_logprobs: like `logprobs`; None: the policy is its own old policy, r is exactly 1.
        advantages: like `logprobs`. Neither they nor `old_logprobs` get a gradient.
        mask: bool [T]; where it is false nothing is read.
        clip_ratio_low, clip_ratio_high: in [0, 1] and >= 0; None: no such bound.
        clip_ratio_c: above 1: for A < 0 the loss is at most -c A (dual clip, arXiv 1912.09729); None: off.
        selected: bool [T], or None for no token. Without `kl_cov_coef` their loss is 0 and has no gradient (Clip-Cov).
        kl_cov_coef: selected tokens pay kl_cov_coef |d| (KL-Cov), without gradient where |d| < 1e-6.

    Raises:
        ValueError: a wrong shape, dtype or device, or a constant out of its range.
    """
    _check.tensor("logprobs", logprobs, _FLOATS, ("T",))
    shape, device = tuple(logprobs.shape), logprobs.device
    if old_logprobs is not None:
        _check.tensor("old_logprobs", old_logprobs, (logprobs.dtype,), shape, device)
    _check.tensor("advantages", advantages, (logprobs.dtype,), shape, device)
    _check.tensor("mask", mask, (torch.bool,), shape, device)
    if selected is not None:
        _check.tensor("selected", selected, (torch.bool,), shape, device)
    ratio_min = 1.0 - _constant("clip_ratio_low", clip_ratio_low, 0.0, 1.0, absent=1.0)
    ratio_max = 1.0 + _constant("clip_ratio_high", clip_ratio_high, 0.0, math.inf, absent=math.inf)
    clip_c = _constant("clip_ratio_c", clip_ratio_c, 1.0, math.inf, absent=math.inf)
    coefficient = _constant("kl_cov_coef", kl_cov_coef, 0.0, sys.float_info.max, absent=0.0)
    constants = (ratio_min, ratio_max, clip_c, kl_cov_coef is None, coefficient)
    loss, binds, sums = _PolicyLoss.apply(logprobs, old_logprobs, advantages, mask, selected, constants)
    return PolicyLoss(loss, binds, dict(zip(SUMS, sums.unbind(), strict=True)))


def _constant(name: str, value: float | None, lowest: float, highest: float, *, absent: float) -> float:
    if value is None:
        return absent
    if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:
        raise _check.wrong(name, value, f"a number in [{lowest:g}, {highest:g}], or None")
    return float(value)


class _PolicyLoss(torch.autograd.Function):
    """Keeps the gradient that the forward pass formed: one number a token."""

    @staticmethod
    def forward(ctx, logprobs, old_logprobs, advantages, mask, selected, constants):
        loss, gradient, binds, sums = torch.ops.pyrl.policy_loss(
            logprobs, old_logprobs, advantages, mask, selected, *constants
        )
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(binds, sums)
        return loss, binds, sums

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, *_):
        (gradient,) = ctx.saved_tensors
        return grad_loss * gradient, None, None, None, None, None


@torch.library.register_fake("pyrl::policy_loss")
def _(logprobs, old_logprobs, advantages, mask, selected, ratio_min, ratio_max, clip_c, drop_selected, kl_coef):
    tokens = logprobs.shape
    return (
        logprobs.new_empty(tokens),
        logprobs.new_empty(tokens),
        logprobs.new_empty(tokens, dtype=torch.bool),
        logprobs.new_empty((len(SUMS),), dtype=torch.float64),
    )
