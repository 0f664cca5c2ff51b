"""How calls are timed and how their memory is taken.

A call is built anew each time, since a backward pass frees its graph.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

CPU_REPEATS = 7
GPU_REPEATS = 50
_FLUSH_BYTES = 256 * 2**20
"""Written between two calls; more than the second-level cache of any GPU so far."""


Build = Callable[[], Callable[[], Any]]


def interleaved_seconds(builds: Sequence[Build], repeats: int = CPU_REPEATS) -> list[list[float]]:
    """CPU: each call once, in turn, `repeats` times after one round that does not count, so that whatever else the
    machine does falls on all of them alike."""
    seconds: list[list[float]] = [[] for _ in builds]
    for round_ in range(repeats + 1):
        for build, into in zip(builds, seconds, strict=True):
            call = build()
            start = time.perf_counter()
            result = call()
            elapsed = time.perf_counter() - start
            del result, call  # freeing is not part of the call
            if round_:
                into.append(elapsed)
    return seconds


def graph_seconds(build: Build, repeats: int = GPU_REPEATS) -> float:
    """GPU: median device time of a replay of the call's CUDA graph, the second-level cache flushed before each."""
    for _ in range(3):  # compiles, tunes, and allocates what is kept
        build()()
    call = build()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        call()
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def eager_seconds(build: Build, repeats: int = GPU_REPEATS) -> float:
    """GPU: median time of a call from Python until the device is done."""
    build()()
    times = []
    for _ in range(repeats):
        call = build()
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        del result, call
    return statistics.median(times)


def peak_memory(call: Callable[[], Any], device: torch.device) -> tuple[int, Any]:
    """(bytes that the call held at its peak beyond what existed before it and beyond what it returns, what it returns).

    On a CPU: what PyTorch's allocator handed out, from the profiler's record of it; the ops allocate nothing else that
    grows with the input."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as profile:
            result = call()
        peak = _peak_of_changes(profile)
    return max(0, peak - _bytes_of(result)), result


def _peak_of_changes(profile: torch.profiler.profile) -> int:
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def _bytes_of(result: Any) -> int:
    if isinstance(result, torch.Tensor):
        return result.untyped_storage().nbytes()
    if isinstance(result, tuple | list):
        return sum(_bytes_of(item) for item in result)
    return 0
