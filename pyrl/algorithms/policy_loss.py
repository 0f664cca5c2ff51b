"""Policy losses, one function a method, chosen by `loss.name`.

Each takes the packed tokens of one micro-batch and returns the loss of every token ([T], 0 where masked, to be
minimised) and sums for metrics. Notation: A advantage, d = log pi - log pi_old, r = exp(d). Advantages and old
log-probs carry no gradient. `old_logprobs` None means the first update after a rollout: the old policy is the one that
is being differentiated, so r is exactly 1.

`SURROGATES` are token by token, and Clip-Cov and KL-Cov act on any of them: those of the compiled op
(`pyrl.ops.policy_loss`) in the same pass, the others through `surrogate.treat_selected`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from pyrl import ops
from pyrl.algorithms.cispo import cispo
from pyrl.algorithms.gspo import gspo
from pyrl.algorithms.surrogate import Metrics
from pyrl.config import ClipCov, ClipHigher, KLCov, LossConfig, PPOClip, Ratio, Surrogate

_ALWAYS = ("selected_tokens", "ratio_sum", "approx_kl_sum")
_CLIPS = ("clipped_high_tokens", "clipped_low_tokens")
_KL_PENALTY = ("kl_penalty_sum",)


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    selected: torch.Tensor | None,
    config: LossConfig,
    *,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Metrics]:
    """Per-token loss [T] and metric sums of the method `config.name`.

    `logprobs` fp32 [T] with gradient; `old_logprobs`, `advantages` fp32 [T]; `mask` bool [T]; `selected` bool [T], read
    where `mask` is true, or None for no token; `cu_seqlens` int32 [S + 1], which GSPO needs. Metric sums:
    `selected_tokens`, `ratio_sum`, `approx_kl_sum` (r - 1 - d, the k3 estimate of KL(old || new)), and by method
    `clipped_high_tokens` and `clipped_low_tokens` (a bound holds) and `kl_penalty_sum`. Raises ValueError: a shape or
    dtype that does not fit, `selected` for a method that selects none, or no `cu_seqlens` for GSPO.
    """
    if config.name in TOKEN_SELECTING:
        return TOKEN_SELECTING[config.name](logprobs, old_logprobs, advantages, mask, selected, config)
    if selected is not None:
        raise ValueError(f"selected: {config.name} selects no token, got a mask of them")
    if config.name in SEQUENCE_LEVEL:
        if cu_seqlens is None:
            raise ValueError(f"cu_seqlens: {config.name} needs the bounds of the responses, got None")
        return SEQUENCE_LEVEL[config.name](logprobs, old_logprobs, advantages, mask, config, cu_seqlens=cu_seqlens)
    loss, sums = SURROGATES[config.name](logprobs, old_logprobs, advantages, mask, config)
    return loss, _pick(sums, _clips(config))


def clip_binds(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, config: ClipCov
) -> torch.Tensor:
    """Where the surrogate's clip already takes a token's gradient away, bool [T]; Clip-Cov does not choose those."""
    surrogate = others_of(config)
    if not isinstance(surrogate, PPOClip | ClipHigher):  # it takes no token's gradient
        return torch.zeros_like(logprobs, dtype=torch.bool)
    low, high, c = surrogate.clip_ratio_low, surrogate.clip_ratio_high, surrogate.clip_ratio_c
    return ppo_clip_binds(logprobs, old_logprobs, advantages, low, high, c)


def ppo_clip_binds(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    low: float,
    high: float,
    clip_ratio_c: float = 0.0,
) -> torch.Tensor:
    """Where the PPO clip, or the dual clip, takes a token's gradient away, bool [T]."""
    everywhere = torch.ones_like(logprobs, dtype=torch.bool)
    return ops.policy_loss(
        logprobs.detach(), old_logprobs, advantages, everywhere, clip_ratio_low=low, clip_ratio_high=high,
        clip_ratio_c=clip_ratio_c or None,
    ).binds  # fmt: skip


def ppo_clip(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    config: PPOClip | ClipHigher,
    *,
    selected: torch.Tensor | None = None,
    kl_cov_coef: float | None = None,
) -> tuple[torch.Tensor, Metrics]:
    """max(-r A, -clip(r, 1 - clip_ratio_low, 1 + clip_ratio_high) A), and for A < 0 at most -clip_ratio_c A where that
    is set. `clip_higher` differs in its bounds alone."""
    result = ops.policy_loss(
        logprobs, old_logprobs, advantages, mask, selected=selected, kl_cov_coef=kl_cov_coef,
        clip_ratio_low=config.clip_ratio_low, clip_ratio_high=config.clip_ratio_high,
        clip_ratio_c=config.clip_ratio_c or None,
    )  # fmt: skip
    return result.loss, result.sums


def ratio(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    config: Ratio,
    *,
    selected: torch.Tensor | None = None,
    kl_cov_coef: float | None = None,
) -> tuple[torch.Tensor, Metrics]:
    """-r A: the policy gradient with importance sampling, no bound (arXiv 2505.22617 eq. 12 and 14, other tokens)."""
    result = ops.policy_loss(logprobs, old_logprobs, advantages, mask, selected=selected, kl_cov_coef=kl_cov_coef)
    return result.loss, result.sums


def clip_cov(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    selected: torch.Tensor | None,
    config: ClipCov,
) -> tuple[torch.Tensor, Metrics]:
    """Clip-Cov, arXiv 2505.22617 eq. 11-12: loss 0 and no gradient on the chosen tokens, the surrogate's on the others;
    without another one, max(-r A, -clip(r, 1 - low, 1 + high) A). Chosen tokens stay in the denominator of the mean."""
    surrogate = others_of(config)
    loss, sums = SURROGATES[surrogate.name](logprobs, old_logprobs, advantages, mask, surrogate, selected=selected)
    return loss, _pick(sums, _clips(surrogate))


def kl_cov(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    selected: torch.Tensor | None,
    config: KLCov,
) -> tuple[torch.Tensor, Metrics]:
    """KL-Cov, arXiv 2505.22617 eq. 13-14 and listing 1: the surrogate, -r A without another one, plus kl_cov_coef |d|
    on the chosen tokens.

    Where |d| < 1e-6 the penalty has a value but no gradient: a deviation from the published code, whose sign(d) is
    noise there. In the first update every d is 0, and with `first_update: subgradient` the chosen tokens get the
    subgradient of -r A + kl_cov_coef |d| of least norm: -A + kl_cov_coef s with the s in [-1, 1] that brings it nearest
    to 0, which is the surrogate's own for the advantage sign(A) max(|A| - kl_cov_coef, 0).
    """
    if old_logprobs is None and selected is not None and config.first_update == "subgradient":
        shrunk = torch.nn.functional.softshrink(advantages, config.kl_cov_coef)
        advantages = torch.where(selected, shrunk, advantages)
    loss, sums = SURROGATES[config.surrogate.name](
        logprobs, old_logprobs, advantages, mask, config.surrogate, selected=selected, kl_cov_coef=config.kl_cov_coef
    )
    return loss, _pick(sums, (*_clips(config.surrogate), *_KL_PENALTY))


def others_of(config: ClipCov) -> Surrogate:
    """Clip-Cov's loss of the tokens that were not drawn."""
    if config.surrogate is not None:
        return config.surrogate
    return PPOClip(clip_ratio_low=config.clip_ratio_low, clip_ratio_high=config.clip_ratio_high)


SURROGATES: dict[str, Callable[..., tuple[torch.Tensor, Metrics]]] = {
    "ppo_clip": ppo_clip,
    "clip_higher": ppo_clip,
    "ratio": ratio,
    "cispo": cispo,
}
"""Token by token: function of (logprobs, old_logprobs, advantages, mask, config, *, selected, kl_cov_coef)."""

SEQUENCE_LEVEL: dict[str, Callable[..., tuple[torch.Tensor, Metrics]]] = {"gspo": gspo}
"""By response: function of (logprobs, old_logprobs, advantages, mask, config, *, cu_seqlens)."""

TOKEN_SELECTING: dict[str, Callable[..., tuple[torch.Tensor, Metrics]]] = {"clip_cov": clip_cov, "kl_cov": kl_cov}
"""On a surrogate: function of (logprobs, old_logprobs, advantages, mask, selected, config)."""

POLICY_LOSSES = (*SURROGATES, *SEQUENCE_LEVEL, *TOKEN_SELECTING)
"""Every `loss.name`."""


def _clips(surrogate: Surrogate) -> tuple[str, ...]:
    return _CLIPS if hasattr(surrogate, "clip_ratio_high") else ()


def _pick(sums: Metrics, names: tuple[str, ...]) -> Metrics:
    return {name: sums[name] for name in (*_ALWAYS, *names)}
