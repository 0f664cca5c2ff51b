"""Grading of many responses by killable processes.

Each worker is sent a batch and answers item by item, so its clock restarts with every item. An item that runs into the
wall limit is unjudged and its worker is replaced; an item whose worker dies gets one more try. The rest of a lost
batch goes back to the queue. Nothing else is affected.
"""

from __future__ import annotations

import math
import os
import selectors
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

from pyrl.config import ConfigError
from pyrl.reward.process import STARTUP_SECONDS, GraderProcess, GraderStartError
from pyrl.reward.tasks import CRASH, TIMEOUT, UnknownTaskError, least_timeout, split_task
from pyrl.types import Verdict

MAX_BATCH = 64
"""Items sent to a worker at once: enough to hide the pipe's latency, few enough to keep workers evenly loaded."""
MAX_TRIES = 2
"""Of an item whose worker died under it."""
GATHER_SECONDS = 0.0005
"""Pause before a batch's answers are read, so that fast graders do not wake this process once an item."""


class RewardPool:
    """Grader processes for one task; a context manager.

    Args:
        task: `math`, `code`, `code:SECONDS`, `countdown` or `reasoning_gym:NAME`.
        workers: number of processes.
        timeout_seconds: wall limit of one item.
        loader: `module:function`, as in `pyrl.reward.tasks`, in place of the task's own.

    Raises:
        ConfigError: unknown task (the known ones are named), a machine that lacks what the task needs, or a number that
            is out of range or too small for the task.
        GraderStartError: a process could not be started or could not load its grader.

    `grade` may be called from any thread; calls take turns. A pool belongs to the process that made it.
    """

    def __init__(self, task: str, workers: int, timeout_seconds: float, *, loader: str | None = None) -> None:
        if workers < 1:
            raise ConfigError(f"reward.workers {workers}: want at least 1")
        _check_timeout(timeout_seconds)
        try:
            own, variant = split_task(task)
        except UnknownTaskError as error:
            raise ConfigError(str(error)) from error
        if timeout_seconds < (least := least_timeout(task)):
            raise ConfigError(
                f"reward.timeout_seconds {timeout_seconds:g}: for the limit of a program of {task!r}, and time to "
                f"make its sandbox, want at least {least:g}"
            )
        self.task = task
        self.timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._closed = False
        self._workers: list[GraderProcess] = []
        self._kill = weakref.finalize(self, _kill_all, self._workers, self._owner)
        try:
            for _ in range(workers):
                self._workers.append(GraderProcess(loader or own, variant))
            _Round(self, [], timeout_seconds).run()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the present workers."""
        return tuple(worker.pid for worker in self._workers)

    def grade(self, items: Sequence[tuple[str, str]], *, timeout_seconds: float | None = None) -> list[Verdict]:
        """Grade (response text, ground truth) pairs; verdicts come in their order.

        `timeout_seconds` replaces the pool's limit for this call. Blocks for at most (items / workers) x (limit +
        start of a process). Raises GraderStartError when a worker cannot be replaced; the pool is closed then.
        """
        limit = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        _check_timeout(limit)
        with self._lock:
            if self._closed:
                raise RuntimeError(f"the reward pool for {self.task!r} is closed")
            if os.getpid() != self._owner:
                raise RuntimeError(
                    f"the reward pool for {self.task!r} belongs to process {self._owner}: make a new one"
                )
            try:
                return _Round(self, items, limit).run()
            except GraderStartError:
                self.close()
                raise

    def close(self) -> None:
        """Kill the workers; the pool cannot be used afterwards. A second call does nothing."""
        self._closed = True
        self._kill()


class _Round:
    """One call of `grade`: the event loop over all workers. With no items it waits until every worker is ready."""

    def __init__(self, pool: RewardPool, items: Sequence[tuple[str, str]], limit: float) -> None:
        self.pool, self.items, self.limit = pool, items, limit
        self.workers = pool._workers
        self.waiting = deque(range(len(items)))
        self.verdicts: list[Verdict | None] = [None] * len(items)
        self.open = len(items)
        self.tries: dict[int, int] = {}
        self.failed_starts = 0
        self.messages: list[str] = []

    def run(self) -> list[Verdict]:
        for worker in self.workers:
            if worker.ended:  # since the last call
                worker.kill()
                worker.start()
        try:
            while self.open or (not self.items and not all(worker.ready for worker in self.workers)):
                for worker in self.workers:
                    self._feed(worker)
                self._wait()
                for worker in self.workers:
                    self._attend(worker)
        except BaseException:  # interrupted: answers under way belong to nobody, so those workers must not be reused
            for worker in self.workers:
                if worker.pending:
                    worker.pending.clear()
                    worker.kill()
                    worker.start()
            raise
        return [verdict for verdict in self.verdicts if verdict is not None]

    def _feed(self, worker: GraderProcess) -> None:
        if not worker.ready or worker.pending or not self.waiting:
            return
        share = math.ceil(len(self.waiting) / (2 * len(self.workers)))
        batch = [self.waiting.popleft() for _ in range(min(MAX_BATCH, share))]
        worker.queue(batch, [tuple(self.items[index]) for index in batch])
        worker.deadline = time.monotonic() + self.limit
        worker.flush()

    def _busy(self) -> list[GraderProcess]:
        return [worker for worker in self.workers if worker.pending or not worker.ready]

    def _wait(self) -> None:
        with selectors.PollSelector() as selector:
            busy = self._busy()
            for worker in busy:
                selector.register(worker.read_fd, selectors.EVENT_READ)
                if worker.has_unsent:
                    selector.register(worker.write_fd, selectors.EVENT_WRITE)
            selector.select(max(0.0, min(worker.deadline for worker in busy) - time.monotonic()))
        if any(len(worker.pending) > 1 for worker in busy):
            time.sleep(GATHER_SECONDS)

    def _attend(self, worker: GraderProcess) -> None:
        if not worker.pending and worker.ready:
            return
        if worker.has_unsent:
            worker.flush()
        messages = worker.receive()
        if messages is None:
            self._died(worker)
            return
        for message in messages:
            if worker.ready:
                self._finish(worker.pending.popleft(), *message)
            else:
                self._started(worker, *message)
        if messages:
            worker.deadline = time.monotonic() + self.limit
        elif time.monotonic() >= worker.deadline:
            self._overran(worker)

    def _started(self, worker: GraderProcess, status: str, text: str = "") -> None:
        if status in ("unknown_task", "unavailable"):
            raise ConfigError(text)
        if status != "ready":
            raise GraderStartError(f"the grader of {self.pool.task!r} could not be loaded:\n{text}")
        worker.ready = True

    def _finish(self, index: int, outcome: Any, reason: str, extracted: str | None) -> None:
        self.verdicts[index] = Verdict(outcome, reason, extracted)
        self.open -= 1

    def _overran(self, worker: GraderProcess) -> None:
        if not worker.ready:
            raise GraderStartError(
                f"a grader process of {self.pool.task!r} was not ready after {STARTUP_SECONDS:.0f} s: "
                "is the machine overloaded?"
            )
        self._finish(worker.pending.popleft(), "unjudged", f"{TIMEOUT}: more than {self.limit:g} s", None)
        self._replace(worker)

    def _died(self, worker: GraderProcess) -> None:
        was_ready = worker.ready
        how = self._replace(worker, requeue=False)
        if not was_ready:
            self.failed_starts += 1
            if self.failed_starts > len(self.workers):
                raise GraderStartError(f"grader processes of {self.pool.task!r} die while they start: {how}")
            return
        index = worker.pending[0]
        self.tries[index] = self.tries.get(index, 0) + 1
        if self.tries[index] >= MAX_TRIES:
            worker.pending.popleft()
            self._finish(index, "unjudged", f"{CRASH}: the grader process ended with {how}", None)
        self._requeue(worker)

    def _replace(self, worker: GraderProcess, requeue: bool = True) -> str:
        how = worker.kill()
        if requeue:
            self._requeue(worker)
        worker.start()
        return how

    def _requeue(self, worker: GraderProcess) -> None:
        self.waiting.extendleft(reversed(worker.pending))
        worker.pending.clear()


def _kill_all(workers: list[GraderProcess], owner: int) -> None:
    if os.getpid() != owner:  # a fork of the owner is ending, not the owner
        return
    for worker in workers:
        worker.kill()
    workers.clear()


def _check_timeout(seconds: float) -> None:
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"reward.timeout_seconds {seconds}: want finite seconds above 0")
