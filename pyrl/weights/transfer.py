"""Learner -> vLLM: one small interface over three transports.

    shm   safetensors in shared memory, read by the engine of `shm_engine`  (CPU; learner and server on one node)
    ipc   vLLM's CUDA IPC engine                                            (server on the learner's GPUs)
    nccl  vLLM's NCCL engine                                                (server on other GPUs)

Every rank calls `sync` and exhausts the tensors in lockstep, because reading them is a collective. Whatever the
transport, the sequence is: pause, start_weight_update, update_weights, finish_weight_update(version), resume. A failure
on one rank is raised on all.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file

from pyrl.rollout.control import EngineCallError, EngineControl
from pyrl.rollout.server import ServerError, ServerPool, make_shared_folder

log = logging.getLogger("pyrl")

NamedTensors = Iterable[tuple[str, torch.Tensor]]
"""(Hugging Face name, full tensor), the whole model, in the same order on every rank."""

CHUNK_BYTES = 1 << 30
"""Tensors are written in files of about this size: the writer needs this much memory beside the shared copy."""


class WeightSyncError(RuntimeError):
    """The engines could not be given the learner's weights."""


class WeightTransfer(ABC):
    """Gives every server the learner's weights. Close it when done; it is a context manager."""

    def __init__(self, urls: Sequence[str], *, timeout: float = 600.0, group: dist.ProcessGroup | None = None) -> None:
        """`urls`: the servers this rank talks to, empty on ranks that only take part in reading the tensors.
        `timeout`: deadline of one update call, seconds. `group`: all ranks that call `sync`; None: this one alone."""
        self._controls = [EngineControl(url) for url in urls]
        self._timeout = timeout
        self._group = group

    @property
    def is_writer(self) -> bool:
        """Whether this rank sends; the others only consume the iterator."""
        return bool(self._controls)

    def sync(self, named_tensors: NamedTensors, version: int) -> None:
        """Make every server hold `named_tensors` as policy version `version`. Collective over `group`.

        Returns on every rank only when all servers hold them. Raises WeightSyncError on every rank if one fails.
        """
        error = None
        try:
            self._sync(named_tensors, version)
        except (EngineCallError, ServerError, SafetensorError, OSError) as problem:
            error = problem
        self._agree(error, version)

    @abstractmethod
    def _sync(self, named_tensors: NamedTensors, version: int) -> None: ...

    def close(self) -> None:
        for control in self._controls:
            control.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _agree(self, error: Exception | None, version: int) -> None:
        """Raise on every rank what failed on any."""
        text = None if error is None else str(error)
        if self._group is not None and dist.get_world_size(self._group) > 1:
            texts: list[str | None] = [None] * dist.get_world_size(self._group)
            dist.all_gather_object(texts, text, group=self._group)
            text = next((f"rank {rank}: {t}" for rank, t in enumerate(texts) if t is not None), None)
        if text is not None:
            raise WeightSyncError(f"weights of version {version} did not reach the engines: {text}") from error


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

    def __init__(
        self,
        urls: Sequence[str],
        *,
        folder: Path | None = None,
        pool: ServerPool | None = None,
        timeout: float = 600.0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """`folder`: where the files go; default: the pool's, else a private one in shared memory, removed on exit.
        `pool`: its restarted servers are given the current weights before they count as ready."""
        super().__init__(urls, timeout=timeout, group=group)
        self._own_folder = folder is None and pool is None and self.is_writer
        self._folder = make_shared_folder() if self._own_folder else folder or (pool and pool.shared_folder)
        self._pool = pool
        self._current: tuple[int, list[_Chunk]] | None = None
        self._locks = {control.url: threading.Lock() for control in self._controls}
        for control in self._controls:
            control.init_transfer({})
        if pool is not None:
            pool.on_restart = self.resend
        if self._own_folder:
            atexit.register(shutil.rmtree, self._folder, ignore_errors=True)

    def resend(self, url: str) -> None:
        """Give the server at `url` the last synced weights; nothing before the first sync."""
        if self._current is None:
            return
        control = next(c for c in self._controls if c.url == url)
        with self._locks[url]:  # a sync may be replacing them
            version, chunks = self._current
            self._send(control, version, chunks)

    def close(self) -> None:
        if self._pool is not None and self._pool.on_restart == self.resend:
            self._pool.on_restart = None
        if self._current is not None:
            _remove(self._current[1])
            self._current = None
        if self._own_folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        super().close()

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
                self._apply(control, version, chunks)
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
        path = self._folder / f"{stem}-{count}.safetensors"
        save_file(tensors, path)
        return _Chunk(path, list(tensors))

    def _apply(self, control: EngineControl, version: int, chunks: list[_Chunk]) -> None:
        with self._locks[control.url]:
            self._send(control, version, chunks)

    def _send(self, control: EngineControl, version: int, chunks: list[_Chunk]) -> None:
        with paused(control):
            control.start_update()
            for chunk in chunks:
                control.update(chunk.info(chunks[-1]), timeout=self._timeout)
            control.finish_update(version, timeout=self._timeout)

    def _wait_resent(self, control: EngineControl, version: int, error: EngineCallError) -> None:
        """A server that died during the update is restarted by the pool, which calls `resend`."""
        if self._pool is None or control.healthy():
            raise error
        log.warning("%s; waiting for the server to be restarted", error)
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            time.sleep(0.5)
            self._pool.wait_ready()
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
