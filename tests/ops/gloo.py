"""Runs a function on real gloo processes and brings its results back."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def fork_server() -> Any:
    """A context whose processes are forked from one that has imported `tests.preloaded`: once, and not once a rank."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    return context


def run_on_ranks(world: int, function: Callable[..., Any], *arguments: Any, deadline: float = 240.0) -> list[Any]:
    """`function(*arguments)` on each of `world` ranks of a gloo group; its results, by rank.

    `function` is importable by name. Raises what a rank raised, or TimeoutError after `deadline` seconds.
    """
    fork_server()
    with tempfile.TemporaryDirectory() as folder:
        context = mp.start_processes(
            _main, (world, folder, function, arguments, deadline), nprocs=world, join=False, start_method="forkserver"
        )
        end = time.monotonic() + deadline
        try:
            while not context.join(timeout=max(0.1, min(5.0, end - time.monotonic()))):
                if time.monotonic() > end:
                    raise TimeoutError(f"{function.__name__} on {world} ranks is not done after {deadline} s")
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(world)]


def _main(
    rank: int, world: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...], deadline: float
) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=deadline)
    )
    torch.save(function(*arguments), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()
