"""What data-parallel leaders produce, brought to every rank."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

from pyrl.learner.parallel import Parallel

T = TypeVar("T")


def share_of(items: list[T], parallel: Parallel) -> list[T]:
    """The contiguous part of `items` that this rank's data-parallel replica generates and grades.

    Sizes differ by at most one, and the parts of all replicas in rank order are `items` again.
    """
    start = len(items) * parallel.dp_rank // parallel.dp_size
    end = len(items) * (parallel.dp_rank + 1) // parallel.dp_size
    return items[start:end]


def gather_from_leaders(items: list[T] | None, parallel: Parallel) -> list[T]:
    """Concatenate the leaders' lists in data-parallel order, on every rank. Non-leaders pass None. Collective."""
    if parallel.world_size == 1:
        return list(items or [])
    gathered = gather_from_every_rank((parallel.dp_rank, items) if parallel.is_leader else None, parallel)
    parts = sorted((part for part in gathered if part is not None), key=lambda part: part[0])
    return [item for _, part in parts for item in part]


def gather_from_every_rank(value: T, parallel: Parallel) -> list[T]:
    """The values of all ranks, in rank order, on every rank. Collective."""
    if parallel.world_size == 1:
        return [value]
    values: list[T | None] = [None] * parallel.world_size
    dist.all_gather_object(values, value, group=parallel.cpu_group)
    return values  # type: ignore[return-value]


def broadcast_from_rank_zero(value: T | None, parallel: Parallel) -> T:
    """Rank 0's value on every rank. Collective."""
    if parallel.world_size == 1:
        return value  # type: ignore[return-value]
    box = [value]
    dist.broadcast_object_list(box, src=0, group=parallel.cpu_group)
    return box[0]  # type: ignore[return-value]
