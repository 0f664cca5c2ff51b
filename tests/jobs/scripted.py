"""Runs and servers for tests of workers, which import nothing heavy: a worker process loads them in a moment."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

from pyrl.config import ConfigError

PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Servers:
    """In place of a `ServerStart`."""

    folder: Path
    log_folder: Path = Path("log")
    urls: tuple[str, ...] = ()

    @property
    def config(self) -> SimpleNamespace:
        return SimpleNamespace(rollout=SimpleNamespace(urls=self.urls))

    @contextlib.contextmanager
    def start(self) -> Iterator[str]:
        """Leaves a file while they run, named by their process."""
        mark = self.folder / f"servers-{os.getpid()}"
        mark.touch()
        try:
            yield self.log_folder.name
        finally:
            mark.unlink()


@dataclass(frozen=True)
class Run:
    """In place of a `Job`."""

    title: str
    folder: Path
    does: Literal["ends", "meets", "waits", "refuses", "dies"] = "ends"
    """`meets`: ends once another run that meets has begun. `waits`: for the question whether to stop to be answered
    with yes."""

    def run(self, servers: str, stop: Callable[[], bool]) -> bool:
        self._mark("begun", f"{os.getpid()} {servers}")
        if self.does == "refuses":
            raise ConfigError(f"{self.title} cannot be")
        if self.does == "dies":
            os._exit(7)
        if self.does == "meets":
            wait_until(lambda: len(list(self.folder.glob("begun-meets*"))) > 1)
        if self.does == "waits":
            wait_until(stop)
            self._mark("stopped", "")
        return self.does in ("ends", "meets")

    def _mark(self, what: str, text: str) -> None:
        """Whole or not at all."""
        path = self.folder / f"{what}-{self.title}"
        path.with_suffix(".tmp").write_text(text)
        path.with_suffix(".tmp").rename(path)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)
