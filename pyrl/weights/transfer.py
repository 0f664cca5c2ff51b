"""Learner -> vLLM: one small interface over three transports.

    shm   safetensors in shared memory, read by the engine of `shm_engine`  (CPU; learner and server on one node);
          while a sync lasts, both the old and the new weights lie there
    ipc   vLLM's CUDA IPC engine                                            (server on the learner's GPUs)
    nccl  vLLM's NCCL engine                                                (server on other GPUs)

Every rank calls `sync` and exhausts the tensors in lockstep, because reading them is a collective. Whatever the
transport, the sequence is: pause, start_weight_update, update_weights, finish_weight_update(version), resume. A failure
on one rank is raised on all.

A server that was restarted holds the weights of its model folder. With `shm` and servers that pyrl started it is given
the current ones at once, by the pool's thread. Otherwise the next `sync` finds it out and includes it; it may be one of
the same version, in the middle of a step.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file

from pyrl.learner.barrier import RankBarrier
from pyrl.rollout.control import EngineCallError, EngineControl
from pyrl.rollout.server import ServerError, ServerPool
from pyrl.rollout.shared_folder import SharedFolder

log = logging.getLogger("pyrl")
T = TypeVar("T")

NamedTensors = Iterable[tuple[str, torch.Tensor]]
"""(Hugging Face name, full tensor), the whole model, in the same order on every rank."""

POLL_SECONDS = 0.5
"""Between two looks at a server that is being restarted."""
CHUNK_BYTES = 1 << 30
"""Tensors are written in files of about this size: the writer needs this much memory beside the shared copy."""


class WeightSyncError(RuntimeError):
    """The engines could not be given the learner's weights."""


class WeightTransfer(ABC):
    """Gives every server the learner's weights. Close it when done; it is a context manager."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout: float = 600.0,
        startup_timeout: float = 600.0,
        group: dist.ProcessGroup | None = None,
        barrier: RankBarrier | None = None,
    ) -> None:
        """`urls`: the servers this rank talks to, empty on ranks that only take part in reading the tensors.
        `timeout`: deadline of one sync, seconds. `startup_timeout`: how long a server that was restarted may take to
        answer. `group`: all ranks that call `sync`; None: this one alone. `barrier`: of the same ranks."""
        self._controls = [EngineControl(url) for url in urls]
        self._timeout = timeout
        self._startup_timeout = startup_timeout
        self._group = group
        self._barrier = barrier or RankBarrier(None, rank=0, world_size=1)
        self._version: int | None = None
        self._deadline = 0.0

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers this rank talks to."""
        return tuple(control.url for control in self._controls)

    @property
    def is_writer(self) -> bool:
        """Whether this rank sends; the others only consume the iterator."""
        return bool(self._controls)

    @property
    def restores_servers(self) -> bool:
        """Whether a restarted server is given the current weights without a further `sync`. The same on every rank."""
        return False

    def sync(self, named_tensors: NamedTensors, version: int) -> None:
        """Make every server hold `named_tensors` as policy version `version`. Collective over `group`.

        Returns on every rank only when all servers hold them. Raises WeightSyncError on every rank if one fails.
        """
        if self._version is not None and not self.restores_servers and not self.all_hold(self._version):
            self._together(self._reconnect, "a restarted server could not be connected anew", self._timeout)
        self._together(
            lambda: self._sync(named_tensors, version),
            f"weights of version {version} did not reach the engines",
            self._timeout,
        )
        self._version = version

    def all_hold(self, version: int) -> bool:
        """Whether every server holds policy `version`, once all answer: one may be starting again. Collective.

        Raises WeightSyncError on every rank for a server that does not answer within the startup timeout.
        """
        held: list[int] = []
        self._together(
            lambda: held.extend(self._answer(control) for control in self._controls),
            "a server that went away did not come back",
            self._startup_timeout,
            setting="rollout.startup_timeout_seconds",
        )
        return all(self._gather(all(its == version for its in held)))

    @abstractmethod
    def _sync(self, named_tensors: NamedTensors, version: int) -> None: ...

    @abstractmethod
    def _reconnect(self) -> None:
        """Make ready for `_sync` servers of which some were restarted."""

    def close(self) -> None:
        for control in self._controls:
            control.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _left(self) -> float:
        """Seconds until the deadline; at least one, so that it is the call at that moment whose error is seen."""
        return max(1.0, self._deadline - time.monotonic())

    def _answer(self, control: EngineControl) -> int:
        """The version that the server holds."""
        warned = False
        while True:
            try:
                return control.weight_version()
            except EngineCallError as error:
                if time.monotonic() > self._deadline:
                    raise
                if not warned:
                    log.warning("%s; waiting %g s for the server to be restarted", error, self._left())
                warned = True
            time.sleep(POLL_SECONDS)

    def _together(
        self, work: Callable[[], None], failure: str, timeout: float, setting: str = "rollout.sync_timeout_seconds"
    ) -> None:
        """`work` on every rank, within `timeout` seconds; what fails on one is raised on all when all are done."""
        error = None
        self._deadline = time.monotonic() + timeout
        try:
            work()
        except (EngineCallError, ServerError, SafetensorError, OSError) as problem:
            error = problem
        self._barrier.wait("the ranks that talk to vLLM servers", seconds=self._left(), setting=setting)
        texts = self._gather(None if error is None else str(error))
        text = next((f"rank {rank}: {t}" for rank, t in enumerate(texts) if t is not None), None)
        if text is not None:
            raise WeightSyncError(f"{failure}: {text}") from error

    def _gather(self, value: T) -> list[T]:
        """The values of all ranks, in rank order."""
        if self._group is None or dist.get_world_size(self._group) == 1:
            return [value]
        values: list[T | None] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(values, value, group=self._group)
        return values  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class _Chunk:
    path: Path
    names: list[str]

    def info(self, last: _Chunk) -> dict[str, object]:
        """`shm_engine_impl.ShmUpdateInfo` of this chunk."""
        return {"path": str(self.path), "names": self.names, "last": self is last}


class ShmWeightTransfer(WeightTransfer):
    """Transport `shm`. The files of the last version stay, so that a restarted server can be given them at any time,
    without the other ranks: `resend`."""

    def __init__(self, urls: Sequence[str], *, pool: ServerPool | None = None, **options: Any) -> None:
        """`pool`: the servers at `urls`; restarted ones are given the current weights before they count as ready.
        `options`: of `WeightTransfer`. Collective."""
        super().__init__(urls, **options)
        self._folder = SharedFolder() if self.is_writer else None
        self._pool = pool
        self._watched = all(self._gather(pool is not None or not urls))
        self._current: tuple[int, list[_Chunk]] | None = None
        self._locks = {control.url: threading.Lock() for control in self._controls}
        for control in self._controls:
            control.init_transfer({})
        if pool is not None:
            pool.on_restart = self.resend

    @property
    def restores_servers(self) -> bool:
        return self._watched

    @property
    def folder(self) -> Path | None:
        """Where the files are; None on ranks that write none."""
        return self._folder.path if self._folder is not None else None

    def resend(self, url: str) -> None:
        """Give the server at `url` the last synced weights; nothing before the first sync."""
        if self._current is None:
            return
        control = next(c for c in self._controls if c.url == url)
        with self._locks[url]:  # a sync may be replacing them
            version, chunks = self._current
            self._send(control, version, chunks, time.monotonic() + self._timeout)

    def close(self) -> None:
        if self._pool is not None and self._pool.on_restart == self.resend:
            self._pool.on_restart = None
        self._current = None
        if self._folder is not None:
            self._folder.close()
        super().close()

    def _reconnect(self) -> None:
        """There is nothing to connect."""

    def _sync(self, named_tensors: NamedTensors, version: int) -> None:
        if not self.is_writer:
            for _ in named_tensors:
                pass
            return
        tensors = iter(named_tensors)
        chunks: list[_Chunk] = []
        try:
            chunks.extend(self._write(tensors, version))
        except (OSError, SafetensorError):
            for _ in tensors:  # the other ranks are reading on
                pass
            _remove(chunks)
            raise
        old, self._current = self._current, (version, chunks)
        for control in self._controls:
            try:
                with self._locks[control.url]:
                    self._send(control, version, chunks, self._deadline)
            except EngineCallError as error:
                self._wait_resent(control, version, error)
        if old is not None:
            _remove(old[1])

    def _write(self, named_tensors: Iterator[tuple[str, torch.Tensor]], version: int) -> Iterator[_Chunk]:
        stem = f"weights-{os.getpid()}-{id(self):x}-{version}-{time.monotonic_ns():x}"
        held: dict[str, torch.Tensor] = {}
        size = count = 0
        for name, tensor in named_tensors:
            # The iterator may reuse the memory of what it yielded, and a tied tensor may not be saved twice as one.
            held[name] = tensor.detach().to("cpu", copy=True).contiguous()
            size += held[name].nbytes
            if size >= CHUNK_BYTES:
                yield self._save(stem, count, held)
                held, size, count = {}, 0, count + 1
        if held:
            yield self._save(stem, count, held)

    def _save(self, stem: str, count: int, tensors: dict[str, torch.Tensor]) -> _Chunk:
        path = self._folder.path / f"{stem}-{count}.safetensors"
        save_file(tensors, path)
        return _Chunk(path, list(tensors))

    def _send(self, control: EngineControl, version: int, chunks: list[_Chunk], deadline: float) -> None:
        with paused(control):
            control.start_update()
            for chunk in chunks:
                control.update(chunk.info(chunks[-1]), timeout=max(1.0, deadline - time.monotonic()))
            control.finish_update(version, timeout=max(1.0, deadline - time.monotonic()))

    def _wait_resent(self, control: EngineControl, version: int, error: EngineCallError) -> None:
        """A server that died during the update is restarted by the pool, which calls `resend`."""
        if self._pool is None or control.healthy():
            raise error
        log.warning("%s; waiting for the server to be restarted", error)
        while time.monotonic() < self._deadline:
            time.sleep(POLL_SECONDS)
            self._pool.raise_if_failed()
            with contextlib.suppress(EngineCallError):
                if control.weight_version() == version:
                    return
        raise error


@contextlib.contextmanager
def paused(control: EngineControl) -> Iterator[None]:
    """No generation inside the block. Requests in flight are finished first, so no completion has two versions."""
    control.pause("wait")
    try:
        yield
    finally:
        # After a failure the server may be gone too; that must not hide what failed first.
        try:
            control.resume()
        except EngineCallError as error:
            log.warning("%s", error)


def _remove(chunks: list[_Chunk]) -> None:
    for chunk in chunks:
        chunk.path.unlink(missing_ok=True)
