"""Results of the last pipeline stage, brought to every stage of the replica."""

from __future__ import annotations

import torch
import torch.distributed as dist

from pyrl.learner.parallel import Parallel


def broadcast_from_last_stage(
    results: list[dict[str, torch.Tensor]], parallel: Parallel
) -> list[dict[str, torch.Tensor]]:
    """Per micro-batch {name: tensor} of the last stage, on every stage; `results` of the other stages are not read.

    Collective over `parallel.pp_group`. One message for the shapes, then one for each dtype.
    """
    if parallel.pp_size == 1:
        return results
    layout: list[list[list[tuple[str, tuple[int, ...], torch.dtype]]]] = [
        [[(name, tuple(t.shape), t.dtype) for name, t in result.items()] for result in results]
    ]
    dist.broadcast_object_list(layout, group=parallel.pp_group, src=parallel.last_stage_rank, device=parallel.device)
    if not parallel.is_last_stage:
        results = [
            {name: torch.empty(shape, dtype=dtype, device=parallel.device) for name, shape, dtype in entries}
            for entries in layout[0]
        ]
    tensors = [t for result in results for t in result.values()]
    for dtype in sorted({t.dtype for t in tensors}, key=str):
        same = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.flatten() for t in same])
        dist.broadcast(flat, group=parallel.pp_group, src=parallel.last_stage_rank)
        if not parallel.is_last_stage:
            for t, part in zip(same, flat.split([t.numel() for t in same]), strict=True):
                t.copy_(part.view(t.shape))
    return results
