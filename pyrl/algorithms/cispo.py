"""CISPO (MiniMax-M1, arXiv 2506.13585 eq. 4-5): the weight is clipped, not the update."""

from __future__ import annotations

import torch

from pyrl.algorithms.surrogate import Metrics, ratio_sums, treat_selected, valid_inputs
from pyrl.config import CISPO


def cispo(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    config: CISPO,
    *,
    selected: torch.Tensor | None = None,
    kl_cov_coef: float | None = None,
) -> tuple[torch.Tensor, Metrics]:
    """-sg(clip(r, 1 - clip_ratio_low, 1 + clip_ratio_high)) A log pi: every token keeps a gradient, -clip(r) A.

    `selected` and `kl_cov_coef` as in `pyrl.ops.policy_loss`. `clipped_*_tokens` count the weights that were clipped.
    """
    d, advantage = valid_inputs(logprobs, old_logprobs, advantages, mask)
    ratio = d.detach().exp()
    low, high = 1.0 - config.clip_ratio_low, 1.0 + config.clip_ratio_high
    weighted = -ratio.clamp(low, high) * advantage
    loss = torch.where(mask, weighted * torch.where(mask, logprobs.double(), 0.0), 0.0)
    loss, of_selected = treat_selected(loss, d, selected, kl_cov_coef, mask)
    return loss.to(logprobs.dtype), ratio_sums(d, ratio > high, ratio < low, mask) | of_selected
