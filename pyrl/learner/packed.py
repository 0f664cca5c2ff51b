"""One micro-batch as Megatron's attention sees it: what every layer needs, computed once."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from pyrl.types import PackedBatch

_MIN_FILL = 0.6


@dataclass
class PackedInputs(PackedSeqParams):
    """Megatron's packed-sequence parameters, with RoPE and, for `sdpa`, the way to rectangles of similar lengths."""

    rope_cos: torch.Tensor | None = None
    """fp32 [T, 1, head_dim / 2]"""
    rope_sin: torch.Tensor | None = None
    rectangles: list[tuple[int, int]] = field(default_factory=list)
    """(rows, columns) of each; their cells lie one after another."""
    tokens: torch.Tensor | None = None
    """int64 [C]: the token behind each cell; a padding cell repeats its sequence's last token."""
    cells: torch.Tensor | None = None
    """int64 [T]: the cell of each token."""
    padding_cells: torch.Tensor | None = None
    """int64 [P]: the cells that hold no token."""


def pack_inputs(batch: PackedBatch, inv_freq: torch.Tensor, rope_scale: float, *, rectangles: bool) -> PackedInputs:
    """What attention needs of `batch`. `inv_freq`: fp32 [head_dim / 2]; `rectangles`: also those for `sdpa`."""
    angles = batch.position_ids[:, None, None].float() * inv_freq
    inputs = PackedInputs(
        qkv_format="thd",
        cu_seqlens_q=batch.cu_seqlens,
        cu_seqlens_kv=batch.cu_seqlens,
        max_seqlen_q=batch.max_seqlen,
        max_seqlen_kv=batch.max_seqlen,
        rope_cos=angles.cos() * rope_scale,
        rope_sin=angles.sin() * rope_scale,
    )
    if rectangles:
        _add_rectangles(inputs, batch.cu_seqlens)
    return inputs


def _add_rectangles(inputs: PackedInputs, cu_seqlens: torch.Tensor) -> None:
    """Sort sequences by length and cut them where a row would be less than `_MIN_FILL` full."""
    starts = cu_seqlens[:-1].long()
    lengths, order = cu_seqlens.diff().long().sort(descending=True, stable=True)
    starts = starts[order]
    host_lengths = [n for n in lengths.tolist() if n > 0]
    device = cu_seqlens.device
    cells = torch.empty(int(cu_seqlens[-1]), dtype=torch.long, device=device)
    tokens, padding = [], []
    first, offset = 0, 0
    while first < len(host_lengths):
        longest = host_lengths[first]
        last = first
        while last < len(host_lengths) and host_lengths[last] >= _MIN_FILL * longest:
            last += 1
        columns = torch.arange(longest, device=device)
        part = lengths[first:last, None]
        grid = (starts[first:last, None] + columns.minimum(part - 1)).flatten()
        valid = (columns < part).flatten()
        numbers = torch.arange(offset, offset + grid.numel(), device=device)
        cells[grid[valid]] = numbers[valid]
        tokens.append(grid)
        padding.append(numbers[~valid])
        inputs.rectangles.append((last - first, longest))
        first, offset = last, offset + grid.numel()
    inputs.cells, inputs.tokens, inputs.padding_cells = cells, torch.cat(tokens), torch.cat(padding)
