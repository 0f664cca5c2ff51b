"""Policy losses, one function a method, chosen by `loss.name`.

Each takes the packed tokens of one micro-batch and returns the loss of every token (fp32 [T], 0 where masked, to be
minimised) and sums for metrics. Notation: A advantage, d = log pi - log pi_old, r = exp(d). Advantages and old
log-probs carry no gradient. `old_logprobs` None means the first update after a rollout: the old policy is the one that
is being differentiated, so r is exactly 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from pyrl.config import ClipCov, ClipHigher, KLCov, LossConfig, PPOClip

MIN_LOG_RATIO = 1e-6
"""|d| below this is rounding between two forward passes of the same weights: KL-Cov's penalty has no gradient there."""

Metrics = dict[str, torch.Tensor]
"""Sums over the valid tokens of one micro-batch, fp64 scalars: they add up over micro-batches and ranks."""


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    selected: torch.Tensor | None,
    config: LossConfig,
) -> tuple[torch.Tensor, Metrics]:
    """Per-token loss [T] and metric sums of the method `config.name`.

    `logprobs` fp32 [T] with gradient; `old_logprobs`, `advantages` fp32 [T]; `mask` bool [T]; `selected` bool [T], read
    where `mask` is true, or None for no token. Metric sums: `selected_tokens`, `ratio_sum`, `approx_kl_sum` (r - 1 - d,
    the k3 estimate of KL(old || new)), and by method `clipped_high_tokens` and `clipped_low_tokens` (the PPO clip
    binds) or `kl_penalty_sum`. Raises ValueError: a shape or dtype that does not fit, or a selected token for a method
    that selects none.
    """
    _check(logprobs, old_logprobs, advantages, mask, selected)
    old = logprobs.detach() if old_logprobs is None else old_logprobs.detach()
    log_ratio = torch.where(mask, logprobs - old, 0.0)
    advantages = torch.where(mask, advantages.detach(), 0.0)
    chosen = torch.zeros_like(mask) if selected is None else selected & mask
    loss, metrics = POLICY_LOSSES[config.name](log_ratio, advantages, chosen, config)
    return torch.where(mask, loss, 0.0), metrics | _ratio_metrics(log_ratio.detach(), mask, chosen)


def clipped_surrogate(
    log_ratio: torch.Tensor, advantages: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """max(-r A, -clip(r, 1 - low, 1 + high) A) [T], and where the clip binds (bool [T]): no gradient there.

    Source: PPO (arXiv 1707.06347) eq. 7, with the two bounds of DAPO (arXiv 2503.14476).
    """
    ratio = log_ratio.detach().exp()
    clipped = -ratio.clamp(1.0 - low, 1.0 + high) * advantages
    binds = clipped > -ratio * advantages
    # exp sees 0 where the clip binds: through max() an overflown ratio would send 0 * inf = nan back
    free = -torch.where(binds, 0.0, log_ratio).exp() * advantages
    return torch.where(binds, clipped, free), binds


def ppo_clip_binds(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, low: float, high: float
) -> torch.Tensor:
    """Where the PPO clip already takes a token's gradient away, bool [T]; Clip-Cov does not choose those."""
    return clipped_surrogate((logprobs - old_logprobs).detach(), advantages, low, high)[1]


def ppo_clip(
    log_ratio: torch.Tensor, advantages: torch.Tensor, chosen: torch.Tensor, config: PPOClip | ClipHigher
) -> tuple[torch.Tensor, Metrics]:
    """max(-r A, -clip(r, 1 - clip_ratio_low, 1 + clip_ratio_high) A). `clip_higher` differs in its bounds alone."""
    if chosen.any():
        raise ValueError(f"selected: {config.name} selects no token, got {int(chosen.sum())}")
    loss, binds = clipped_surrogate(log_ratio, advantages, config.clip_ratio_low, config.clip_ratio_high)
    return loss, _clip_metrics(binds, advantages)


def clip_cov(
    log_ratio: torch.Tensor, advantages: torch.Tensor, chosen: torch.Tensor, config: ClipCov
) -> tuple[torch.Tensor, Metrics]:
    """Clip-Cov, arXiv 2505.22617 eq. 11-12: loss 0 and no gradient on the chosen tokens,
    max(-r A, -clip(r, 1 - low, 1 + high) A) on the others. Chosen tokens stay in the denominator of the mean."""
    loss, binds = clipped_surrogate(log_ratio, advantages, config.clip_ratio_low, config.clip_ratio_high)
    return torch.where(chosen, 0.0, loss), _clip_metrics(binds, advantages)


def kl_cov(
    log_ratio: torch.Tensor, advantages: torch.Tensor, chosen: torch.Tensor, config: KLCov
) -> tuple[torch.Tensor, Metrics]:
    """KL-Cov, arXiv 2505.22617 eq. 13-14 and listing 1: -r A, plus kl_cov_coef |d| on the chosen tokens. No PPO clip.

    Where |d| < 1e-6 the penalty has a value but no gradient: a deviation from the published code, whose sign(d) is
    noise there.
    """
    distance = log_ratio.abs()
    distance = torch.where(distance < MIN_LOG_RATIO, distance.detach(), distance)
    penalty = torch.where(chosen, config.kl_cov_coef * distance, 0.0)
    return -log_ratio.exp() * advantages + penalty, {"kl_penalty_sum": _sum(penalty)}


POLICY_LOSSES: dict[str, Callable[..., tuple[torch.Tensor, Metrics]]] = {
    "ppo_clip": ppo_clip,
    "clip_higher": ppo_clip,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
}
"""By `loss.name`: function of (log_ratio, advantages, chosen, config)."""


def _sum(values: torch.Tensor) -> torch.Tensor:
    return values.detach().double().sum()


def _clip_metrics(binds: torch.Tensor, advantages: torch.Tensor) -> Metrics:
    """The upper bound binds for A > 0 and the lower one for A < 0."""
    return {"clipped_high_tokens": _sum(binds & (advantages > 0)), "clipped_low_tokens": _sum(binds & (advantages < 0))}


def _ratio_metrics(log_ratio: torch.Tensor, mask: torch.Tensor, chosen: torch.Tensor) -> Metrics:
    d = log_ratio.double()
    return {
        "selected_tokens": _sum(chosen),
        "ratio_sum": _sum(torch.where(mask, d.exp(), 0.0)),
        "approx_kl_sum": _sum(torch.expm1(d) - d),
    }


def _check(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    selected: torch.Tensor | None,
) -> None:
    named = {"old_logprobs": old_logprobs, "advantages": advantages, "mask": mask, "selected": selected}
    for name, tensor in named.items():
        if tensor is not None and tensor.shape != logprobs.shape:
            raise ValueError(f"{name}: wanted shape {tuple(logprobs.shape)} as logprobs, got {tuple(tensor.shape)}")
    for name in ("mask", "selected"):
        tensor = named[name]
        if tensor is not None and tensor.dtype != torch.bool:
            raise ValueError(f"{name}: wanted bool, got {tensor.dtype}")
