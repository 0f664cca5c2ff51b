"""What the surrogates in plain torch share; the compiled op does the same for those it knows (csrc/policy_loss)."""

from __future__ import annotations

import torch

Metrics = dict[str, torch.Tensor]
"""Sums over the valid tokens of one micro-batch, fp64 scalars: they add up over micro-batches and ranks."""

MIN_LOG_RATIO = 1e-6
"""Below it the sign of d is rounding noise. kMinLogRatio of csrc/policy_loss/token.h."""


def valid_inputs(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor | None, advantages: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(d, A), fp64 [T] each: d = log pi - log pi_old with gradient, exactly 0 without `old_logprobs`; both 0 where
    masked, whatever stands there. Raises ValueError where shapes differ."""
    for name, value in (("old_logprobs", old_logprobs), ("advantages", advantages), ("mask", mask)):
        if value is not None and value.shape != logprobs.shape:
            raise ValueError(f"{name}: got {tuple(value.shape)}, wanted {tuple(logprobs.shape)} as logprobs")
    current = logprobs.double()
    old = current.detach() if old_logprobs is None else old_logprobs.detach().double()
    return torch.where(mask, current - old, 0.0), torch.where(mask, advantages.detach().double(), 0.0)


def ratio_sums(d: torch.Tensor, clipped_high: torch.Tensor, clipped_low: torch.Tensor, mask: torch.Tensor) -> Metrics:
    """The sums that every surrogate reports; `clipped_high`, `clipped_low` bool [T]."""
    d = d.detach()
    return {
        "ratio_sum": torch.where(mask, d.exp(), 0.0).sum(),
        "approx_kl_sum": torch.where(mask, d.expm1() - d, 0.0).sum(),
        "clipped_high_tokens": (clipped_high & mask).double().sum(),
        "clipped_low_tokens": (clipped_low & mask).double().sum(),
    }


def treat_selected(
    loss: torch.Tensor, d: torch.Tensor, selected: torch.Tensor | None, kl_cov_coef: float | None, mask: torch.Tensor
) -> tuple[torch.Tensor, Metrics]:
    """Clip-Cov without `kl_cov_coef` (a chosen token has loss 0), KL-Cov with it (it pays coef |d|, without gradient
    where |d| < 1e-6), as `pyrl.ops.policy_loss` does."""
    chosen = torch.zeros_like(mask) if selected is None else selected & mask
    penalty = torch.zeros_like(d)
    if kl_cov_coef is None:
        loss = torch.where(chosen, 0.0, loss)
    else:
        distance = d.abs()
        felt = torch.where(distance < MIN_LOG_RATIO, distance.detach(), distance)
        penalty = torch.where(chosen, kl_cov_coef * felt, 0.0)
        loss = loss + penalty
    return loss, {"selected_tokens": chosen.double().sum(), "kl_penalty_sum": penalty.detach().sum()}
