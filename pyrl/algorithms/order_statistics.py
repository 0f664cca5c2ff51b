"""Exact order statistics of values that are spread over ranks, without gathering them.

Radix selection: fp32 values map to 32-bit keys of the same order; three rounds of integer histograms, summed over the
group, fix 11 + 11 + 10 bits of the k-th largest key. Integer sums do not depend on order, so every layout gets the same
bits, and each round moves a few KB however many tokens there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

_ROUNDS = ((21, 11), (10, 11), (0, 10))
"""(shift, bits) of each round, most significant first."""


@dataclass(frozen=True, slots=True)
class KthLargest:
    """Of the k-th largest value over the group."""

    value: float
    above: int
    """Values over the group that are strictly larger."""


def kth_largest(values: torch.Tensor, ranks: list[int], *, group: dist.ProcessGroup | None) -> list[KthLargest]:
    """For each k in `ranks` (from 1, at most the number of values over the group) the k-th largest value.

    `values` finite fp32 [n], this rank's; n may be 0 and differ between ranks. `group` None: this process alone.
    Collective, `ranks` equal everywhere. Raises ValueError for values that are not fp32 or not finite.
    """
    if values.dtype != torch.float32 or values.dim() != 1:
        raise ValueError(f"values: wanted fp32 [n], got {values.dtype} {tuple(values.shape)}")
    if not bool(values.isfinite().all()):
        raise ValueError(f"values: wanted finite ones, got {int((~values.isfinite()).sum())} that are not")
    keys = _ordered_keys(values)
    prefixes = [0] * len(ranks)
    remaining = list(ranks)
    for shift, bits in _ROUNDS:
        counts = torch.stack(
            [torch.bincount(_digits(keys, prefix, shift, bits), minlength=1 << bits) for prefix in prefixes]
        )
        if group is not None:
            dist.all_reduce(counts, group=group)
        from_top = counts.flip(1).cumsum(1)
        for i, row in enumerate(from_top.cpu()):
            if not 1 <= remaining[i] <= int(row[-1]):
                raise ValueError(f"ranks: wanted 1 to {int(row[-1])}, got {ranks[i]}")
            bin_from_top = int(torch.searchsorted(row, remaining[i]))
            remaining[i] -= int(row[bin_from_top - 1]) if bin_from_top else 0
            prefixes[i] = (prefixes[i] << bits) | ((1 << bits) - 1 - bin_from_top)
    return [
        KthLargest(_value_of(key), above=rank - rest)
        for key, rank, rest in zip(prefixes, ranks, remaining, strict=True)
    ]


def _ordered_keys(values: torch.Tensor) -> torch.Tensor:
    """int64 [n] in [0, 2^32), ascending as the values are; -0 and 0 get one key."""
    raw = (values.detach() + 0.0).contiguous().view(torch.int32).long()
    return torch.where(raw < 0, ~raw, raw + (1 << 31))


def _value_of(key: int) -> float:
    raw = key - (1 << 31) if key >= 1 << 31 else ~key
    return float(torch.tensor(raw, dtype=torch.int32).view(torch.float32))


def _digits(keys: torch.Tensor, prefix: int, shift: int, bits: int) -> torch.Tensor:
    """The digit at `shift` of the keys whose higher bits equal `prefix`."""
    return (keys[keys >> (shift + bits) == prefix] >> shift) & ((1 << bits) - 1)
