"""Sums over the responses of a packed micro-batch. Nothing waits for the device; no atomics, so the same bits again."""

from __future__ import annotations

import torch


def sequence_sums(values: torch.Tensor, mask: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Sum of `values` [T] over the valid tokens of each packed sequence, fp64 [S], differentiable; 0 for padding.

    `mask` bool [T], `cu_seqlens` int32 [S + 1] as in `PackedBatch`.
    """
    valid = torch.where(mask, values, 0.0).double()
    return torch.segment_reduce(valid, "sum", offsets=cu_seqlens, initial=0.0, unsafe=True)


def of_each_token(values: torch.Tensor, cu_seqlens: torch.Tensor, tokens: int) -> torch.Tensor:
    """The value [S] of the sequence that each of `tokens` packed tokens belongs to, [T], differentiable."""
    places = torch.arange(tokens, device=values.device, dtype=cu_seqlens.dtype)
    return values[torch.bucketize(places, cu_seqlens[1:], right=True)]
