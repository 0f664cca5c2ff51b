"""A process that does nothing but what one file of tests sends it, so that all it holds or leaves is theirs.

The process that runs the tests is shared: other tests' threads, connections, servers and caches come and go in it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

import psutil

P, T = ParamSpec("P"), TypeVar("T")

_PR_SET_CHILD_SUBREAPER = 36
SECONDS_TO_END = 10.0
"""For processes whose end the kernel has been told of already."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the process holds beside memory."""

    children: tuple[str, ...]
    """Command of each living descendant; those whose parents have ended count too."""
    descriptors: tuple[str, ...]
    """What each open one leads to, sorted."""
    mounts: str


class OwnProcess:
    """A context manager. What `run` is given, and what it returns, is pickled."""

    def __enter__(self) -> Self:
        spawn = multiprocessing.get_context("spawn")  # a fork would hold what this process holds
        self._pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=_adopt_orphans)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Its result, or what it raises. `function` is one that can be imported."""
        return self._pool.submit(function, *args, **kwargs).result()

    def held(self) -> Held:
        """Now, or once what was told to end has ended."""
        return self.run(held)


def held() -> Held:
    """Of the process that calls it."""
    deadline = time.monotonic() + SECONDS_TO_END
    while (children := _living_children()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return Held(children, _descriptors(), Path("/proc/self/mounts").read_text())


def _living_children() -> tuple[str, ...]:
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE:  # an adopted one that nobody waits for
                found.append(" ".join(child.cmdline()))
        except psutil.NoSuchProcess:
            continue
    return tuple(sorted(found))


def _descriptors() -> tuple[str, ...]:
    with os.scandir("/proc/self/fd") as entries:
        paths = [entry.path for entry in entries]
    found = []
    for path in paths:
        try:
            found.append(os.readlink(path))
        except FileNotFoundError:  # that of the listing itself
            continue
    return tuple(sorted(found))


def _adopt_orphans() -> Any:
    """A descendant whose parent ends becomes a child of this process, not of the machine's first one."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")
