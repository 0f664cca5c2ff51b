"""GSPO (arXiv 2507.18071 eq. 5-7): one ratio a response, clipped as a whole."""

from __future__ import annotations

import torch

from pyrl.algorithms.sequences import of_each_token, sequence_sums
from pyrl.algorithms.surrogate import Metrics, ratio_sums, valid_inputs
from pyrl.config import GSPO


def gspo(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    config: GSPO,
    *,
    cu_seqlens: torch.Tensor,
) -> tuple[torch.Tensor, Metrics]:
    """s_i = exp(mean of d over response i); max(-s_i A, -clip(s_i, 1 - clip_ratio_low, 1 + clip_ratio_high) A) on each
    of its tokens, so that `seq-mean-token-mean` gives the paper's mean over responses.

    `cu_seqlens` as in `PackedBatch`. `clipped_*_tokens` count the tokens of clipped responses.
    """
    d, advantage = valid_inputs(logprobs, old_logprobs, advantages, mask)
    lengths = sequence_sums(torch.ones_like(d), mask, cu_seqlens)
    of_response = (sequence_sums(d, mask, cu_seqlens) / lengths.clamp(min=1)).exp()
    ratio = of_each_token(of_response, cu_seqlens, len(mask))
    low, high = 1.0 - config.clip_ratio_low, 1.0 + config.clip_ratio_high
    clipped = -ratio.detach().clamp(low, high) * advantage
    plain = -ratio * advantage
    binds = clipped > plain.detach()
    loss = torch.where(mask, torch.where(binds, clipped, plain), 0.0)
    sums = ratio_sums(d, binds & (ratio > 1), binds & (ratio < 1), mask)
    return loss.to(logprobs.dtype), sums | {"selected_tokens": torch.zeros_like(sums["ratio_sum"])}
