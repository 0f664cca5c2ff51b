"""Hands runs to workers: this process alone, or processes that it starts and watches."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Protocol, Self

from pyrl.config import ConfigError
from pyrl.jobs.worker import work

if TYPE_CHECKING:
    from pyrl.config import RunConfig
    from pyrl.jobs.job import Job, ServerStart
    from pyrl.rollout.server import ServerPool

ASK_SECONDS = 0.5
"""Between two questions whether to stop."""
END_SECONDS = 60.0
"""In which a worker comes to the end of a step, writes a checkpoint and stops its servers."""


class JobError(RuntimeError):
    """A worker process ended amid a run; what it printed says why."""


class Workers(Protocol):
    """Whoever makes runs."""

    def run(self, jobs: Sequence[Job], stop: Callable[[], bool]) -> bool:
        """Make the runs in this order, each as soon as a worker is free. Whether all came to their end.

        `stop` is asked between steps; once it says so, runs are left at a checkpoint as `trainer.train` does. Raises
        ConfigError for a run that is refused, and JobError where a worker process ends; the other runs are then left at
        a checkpoint too.
        """


def check_servers(config: RunConfig, count: int) -> None:
    """Raises ConfigError for several workers on the servers of `rollout.urls`, which hold the weights of one run."""
    if count > 1 and config.rollout.urls:
        raise ConfigError(f"--jobs {count}: the servers of rollout.urls hold one run's weights at a time; use --jobs 1")


@contextlib.contextmanager
def start_workers(servers: ServerStart, count: int) -> Iterator[Workers]:
    """`count` workers, whose servers are being started; all are ended on exit. Raises as `check_servers`."""
    check_servers(servers.config, count)
    if count == 1:
        with servers.start() as pool:
            yield _ThisProcess(pool)
    else:
        with _Processes(servers, count) as workers:
            yield workers


@dataclass(frozen=True, slots=True)
class _ThisProcess:
    servers: ServerPool | None

    def run(self, jobs: Sequence[Job], stop: Callable[[], bool]) -> bool:
        return all(not stop() and job.run(self.servers, stop) for job in jobs)


class _Processes:
    def __init__(self, servers: ServerStart, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._workers: dict[Connection, BaseProcess] = {}
        for number in range(1, count + 1):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, self._stop), name=f"worker {number}")
            process.start()
            theirs.close()  # else this end would never see the worker's end
            ours.send(replace(servers, log_folder=servers.log_folder / f"worker_{number}"))
            self._workers[ours] = process

    def run(self, jobs: Sequence[Job], stop: Callable[[], bool]) -> bool:
        todo, running, refused, finished = list(jobs), {}, [], 0
        while True:
            if stop():
                self._stop.set()
            for connection in self._workers:
                if todo and connection not in running and not self._stop.is_set():
                    running[connection] = todo.pop(0)
                    self._give(connection, running[connection])
            if not running:
                break
            for connection in wait(list(running), timeout=ASK_SECONDS):
                result = self._result(connection, running.pop(connection))
                finished += result is True
                if isinstance(result, Exception):
                    refused.append(result)
                    self._stop.set()
        if refused:
            raise refused[0]
        return finished == len(jobs)

    def _give(self, connection: Connection, job: Job) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended, which its result will say
            connection.send(job)

    def _result(self, connection: Connection, job: Job) -> bool | ConfigError | JobError:
        try:
            return connection.recv()
        except (EOFError, ConnectionResetError):
            process = self._workers[connection]
            process.join()
            said = "what it printed says why"
            return JobError(f"{job.title}: {process.name} ended with exit code {process.exitcode}; {said}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for connection in self._workers:
            connection.close()
        for process in self._workers.values():
            process.join(END_SECONDS)
            if process.is_alive():
                process.kill()  # its servers are ended by their guards
                process.join()
