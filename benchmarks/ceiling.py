"""Rates that nothing can beat on this machine, measured in the run that they are compared with."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from benchmarks.timing import graph_seconds

_ROOT = Path(__file__).resolve().parents[1]
_ELEMENTS = 1 << 24
_COPY_BYTES = 1 << 28
# Those of CMakeLists.txt and of rows_avx2.cpp or rows_generic.cpp there.
_FLAGS = ["-std=c++20", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared"]
_AVX2 = ["-mavx2", "-mfma"]


def has_avx2() -> bool:
    return platform.machine() in ("x86_64", "AMD64") and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@cache
def _row_loop() -> Callable[[int, float], float]:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "ceiling.so"
        source = _ROOT / "benchmarks" / "ceiling.cpp"
        isa = _AVX2 if has_avx2() else []
        subprocess.run(["c++", *_FLAGS, *isa, f"-I{_ROOT / 'csrc'}", str(source), "-o", str(library)], check=True)
        function = ctypes.CDLL(str(library)).ceiling
    function.argtypes, function.restype = (ctypes.c_int64, ctypes.c_float), ctypes.c_float
    return function


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads())


def row_elements() -> float:
    """CPU: elements a second, of all threads together, of ceiling.cpp."""
    loop, threads = _row_loop(), torch.get_num_threads()
    start = time.perf_counter()
    done = list(_threads().map(lambda _: loop(_ELEMENTS // threads, 1.0), range(threads)))
    elapsed = time.perf_counter() - start
    assert len(done) == threads
    return _ELEMENTS / elapsed


@cache
def _copy_buffers(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.ones(_COPY_BYTES, dtype=torch.int8, device=device)
    return source, torch.ones_like(source)


def copy_bytes(device: torch.device) -> Callable[[], float]:
    """Bytes a second, read and written together, of a copy of a tensor that no cache holds."""

    def rate() -> float:
        source, target = _copy_buffers(device)
        if device.type == "cuda":
            return 2 * _COPY_BYTES / graph_seconds(lambda: lambda: target.copy_(source))
        start = time.perf_counter()
        target.copy_(source)
        return 2 * _COPY_BYTES / (time.perf_counter() - start)

    return rate


def matmul_operations(hidden: torch.Tensor, weight: torch.Tensor) -> Callable[[], float]:
    """Operations a second of hidden @ weight.t(), rounded to their dtype."""

    def rate() -> float:
        out = hidden.new_empty(len(hidden), len(weight))
        work = 2 * hidden.numel() * len(weight)
        if hidden.is_cuda:
            return work / graph_seconds(lambda: lambda: torch.mm(hidden, weight.t(), out=out))
        start = time.perf_counter()
        torch.mm(hidden, weight.t(), out=out)
        return work / (time.perf_counter() - start)

    return rate
