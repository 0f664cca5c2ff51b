"""What a worker is given, and how it makes a run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyrl.config import RunConfig
from pyrl.learner.parallel import destroy_parallel
from pyrl.rollout.server import ServerPool
from pyrl.trainer import train


@dataclass(frozen=True, slots=True)
class Job:
    """A run to make."""

    title: str
    config: RunConfig
    folder: Path

    def run(self, servers: ServerPool | None, stop: Callable[[], bool]) -> bool:
        """Whether it came to its end; see `trainer.train`."""
        try:
            return train(self.config, self.folder, servers=servers, title=self.title, stop=stop)
        finally:
            destroy_parallel()


@dataclass(frozen=True, slots=True)
class ServerStart:
    """What a worker's servers are started with."""

    config: RunConfig
    """Of any of the runs, which agree on everything that servers are started with."""
    model: Path
    """Whose weights are loaded first; each run gives its own."""
    log_folder: Path

    def start(self) -> contextlib.AbstractContextManager[ServerPool | None]:
        """None where `rollout.urls` names servers that run already."""
        if self.config.rollout.urls:
            return contextlib.nullcontext()
        return ServerPool.start(self.config, self.model, self.log_folder)
