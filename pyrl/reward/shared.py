"""Pools that single calls share, so that `grade_math` need not start a process each time."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pyrl.reward.pool import RewardPool
from pyrl.reward.process import GraderStartError
from pyrl.reward.tasks import CRASH
from pyrl.types import Verdict

MAX_POOLS = 4
"""One-worker pools kept at most, for all tasks together; further callers wait for a free one."""

_slots = threading.BoundedSemaphore(MAX_POOLS)
_lock = threading.Lock()
_idle: dict[str, list[RewardPool]] = {}


def grade_in_shared_pool(task: str, response: str, ground_truth: str, timeout: float) -> Verdict:
    """One grading within `timeout` seconds; a process that cannot be started is an unjudged verdict."""
    try:
        with _borrow(task, timeout) as pool:
            return pool.grade([(response, ground_truth)], timeout_seconds=timeout)[0]
    except GraderStartError as error:
        return Verdict("unjudged", f"{CRASH}: {error}")


@contextmanager
def _borrow(task: str, timeout: float) -> Iterator[RewardPool]:
    with _slots:
        with _lock:
            free = _idle.setdefault(task, [])
            pool = free.pop() if free else None
        if pool is None:
            pool = RewardPool(task, 1, timeout)
        try:
            yield pool
        except BaseException:
            pool.close()
            raise
        with _lock:
            _idle[task].append(pool)


def close_shared_pools() -> None:
    """Kill the idle workers; the next call starts new ones."""
    with _lock:
        pools = [pool for pools in _idle.values() for pool in pools]
        _idle.clear()
    for pool in pools:
        pool.close()


def _forget_after_fork() -> None:
    global _slots, _lock
    _slots, _lock = threading.BoundedSemaphore(MAX_POOLS), threading.Lock()
    _idle.clear()  # the parent's workers stay the parent's


atexit.register(close_shared_pools)
os.register_at_fork(after_in_child=_forget_after_fork)
