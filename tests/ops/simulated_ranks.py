"""Ranks of a group as threads of this process: real collective calls of the code under test, without the processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist


class SimulatedGroup:
    """Stands for a process group in `all_reduce`, `get_rank` and `get_world_size` while `run` is under way."""

    def __init__(self, size: int, deadline: float = 60.0) -> None:
        self._size = size
        self._deadline = deadline
        self._rank = threading.local()

    def run(self, function: Callable[..., Any], parts: Sequence[Sequence[Any]]) -> list[Any]:
        """`function(*parts[rank], self)` on every rank; the results by rank. Raises what a rank raised."""
        self._barrier = threading.Barrier(self._size, timeout=self._deadline)
        self._addends: list[torch.Tensor | None] = [None] * self._size
        results: list[Any] = [None] * self._size
        errors: list[BaseException] = []

        def main(rank: int) -> None:
            self._rank.value = rank
            try:
                results[rank] = function(*parts[rank], self)
            except BaseException as error:  # handed to the caller below
                errors.append(error)
                self._barrier.abort()

        real = dist.all_reduce, dist.get_rank, dist.get_world_size
        dist.all_reduce, dist.get_rank, dist.get_world_size = _all_reduce, _get_rank, _get_world_size
        try:
            threads = [threading.Thread(target=main, args=(rank,)) for rank in range(self._size)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            dist.all_reduce, dist.get_rank, dist.get_world_size = real
        causes = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
        if causes or errors:
            raise (causes or errors)[0]
        return results

    def sum(self, tensor: torch.Tensor) -> None:
        """Replaces `tensor` by the sum of all ranks' tensors."""
        self._addends[self._rank.value] = tensor.clone()
        self._barrier.wait()
        total = torch.stack(self._addends).sum(0, dtype=tensor.dtype)
        self._barrier.wait()
        tensor.copy_(total)

    @property
    def rank(self) -> int:
        return self._rank.value

    @property
    def size(self) -> int:
        return self._size


def _all_reduce(tensor: torch.Tensor, group: SimulatedGroup) -> None:
    group.sum(tensor)


def _get_rank(group: SimulatedGroup) -> int:
    return group.rank


def _get_world_size(group: SimulatedGroup) -> int:
    return group.size
