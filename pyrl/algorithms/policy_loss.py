"""Policy losses, one function a method, chosen by `loss.name`. The formulas are those of `pyrl.ops.policy_loss`.

Each takes the packed tokens of one micro-batch and returns the loss of every token (fp32 [T], 0 where masked, to be
minimised) and sums for metrics. Notation: A advantage, d = log pi - log pi_old, r = exp(d). Advantages and old
log-probs carry no gradient. `old_logprobs` None means the first update after a rollout: the old policy is the one that
is being differentiated, so r is exactly 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from pyrl import ops
from pyrl.config import ClipCov, ClipHigher, KLCov, LossConfig, PPOClip

Metrics = dict[str, torch.Tensor]
"""Sums over the valid tokens of one micro-batch, fp64 scalars: they add up over micro-batches and ranks."""
_ALWAYS = ("selected_tokens", "ratio_sum", "approx_kl_sum")
_OF_CLIPS = (*_ALWAYS, "clipped_high_tokens", "clipped_low_tokens")
_OF_KL_COV = (*_ALWAYS, "kl_penalty_sum")


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
    binds) or `kl_penalty_sum`. Raises ValueError: a shape or dtype that does not fit, or `selected` for a method that
    selects none.
    """
    return POLICY_LOSSES[config.name](logprobs, old_logprobs, advantages, mask, selected, config)


def ppo_clip_binds(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, low: float, high: float
) -> torch.Tensor:
    """Where the PPO clip already takes a token's gradient away, bool [T]; Clip-Cov does not choose those."""
    everywhere = torch.ones_like(logprobs, dtype=torch.bool)
    return ops.policy_loss(
        logprobs.detach(), old_logprobs, advantages, everywhere, clip_ratio_low=low, clip_ratio_high=high
    ).binds


def ppo_clip(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    selected: torch.Tensor | None,
    config: PPOClip | ClipHigher,
) -> tuple[torch.Tensor, Metrics]:
    """max(-r A, -clip(r, 1 - clip_ratio_low, 1 + clip_ratio_high) A), and for A < 0 at most -clip_ratio_c A where that
    is set. `clip_higher` differs in its bounds alone."""
    if selected is not None:
        raise ValueError(f"selected: {config.name} selects no token, got a mask of them")
    result = ops.policy_loss(
        logprobs, old_logprobs, advantages, mask,
        clip_ratio_low=config.clip_ratio_low, clip_ratio_high=config.clip_ratio_high,
        clip_ratio_c=config.clip_ratio_c or None,
    )  # fmt: skip
    return result.loss, _pick(result.sums, _OF_CLIPS)


def clip_cov(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    selected: torch.Tensor | None,
    config: ClipCov,
) -> tuple[torch.Tensor, Metrics]:
    """Clip-Cov, arXiv 2505.22617 eq. 11-12: loss 0 and no gradient on the chosen tokens,
    max(-r A, -clip(r, 1 - low, 1 + high) A) on the others. Chosen tokens stay in the denominator of the mean."""
    result = ops.policy_loss(
        logprobs, old_logprobs, advantages, mask, selected=selected,
        clip_ratio_low=config.clip_ratio_low, clip_ratio_high=config.clip_ratio_high,
    )  # fmt: skip
    return result.loss, _pick(result.sums, _OF_CLIPS)


def kl_cov(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    selected: torch.Tensor | None,
    config: KLCov,
) -> tuple[torch.Tensor, Metrics]:
    """KL-Cov, arXiv 2505.22617 eq. 13-14 and listing 1: -r A, plus kl_cov_coef |d| on the chosen tokens. No PPO clip.

    Where |d| < 1e-6 the penalty has a value but no gradient: a deviation from the published code, whose sign(d) is
    noise there.
    """
    result = ops.policy_loss(
        logprobs, old_logprobs, advantages, mask, selected=selected, kl_cov_coef=config.kl_cov_coef
    )
    return result.loss, _pick(result.sums, _OF_KL_COV)


POLICY_LOSSES: dict[str, Callable[..., tuple[torch.Tensor, Metrics]]] = {
    "ppo_clip": ppo_clip,
    "clip_higher": ppo_clip,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
}
"""By `loss.name`: function of (logprobs, old_logprobs, advantages, mask, selected, config)."""


def _pick(sums: Metrics, names: tuple[str, ...]) -> Metrics:
    return {name: sums[name] for name in names}
