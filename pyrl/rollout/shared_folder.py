"""A folder in shared memory for weight files, which nothing leaves behind."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from pyrl.rollout import guard

SHARED_MEMORY = Path("/dev/shm")
PREFIX, LOCK = "pyrl-", ".lock"


def free_bytes() -> int | None:
    """What shared memory has room for once abandoned folders are gone; None where there is none to write to."""
    if not os.access(SHARED_MEMORY, os.W_OK):
        return None
    remove_abandoned(SHARED_MEMORY)
    return shutil.disk_usage(SHARED_MEMORY).free


class SharedFolder:
    """A new private folder in shared memory.

    It goes when it is closed and when this process ends, killed without warning included: a guard watches over it.
    Where the guard is killed too (a scheduler that ends everything at once), the next shared folder on the machine
    removes it: as long as this process lives, it holds a lock inside.
    """

    def __init__(self) -> None:
        """Raises OSError where there is no shared memory (`free_bytes` is None)."""
        remove_abandoned(SHARED_MEMORY)
        new = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=SHARED_MEMORY))
        self._lock = (new / LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = new.rename(SHARED_MEMORY / new.name.removeprefix("."))  # what can be found is locked
        self._guard = subprocess.Popen(
            guard.command_line(grace=0.0, folder=self.path),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what ends the trainer's process group must not end the guard
        )

    def close(self) -> None:
        """Remove it. Safe to call twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()
        self._guard.terminate()
        self._guard.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_abandoned(root: Path) -> None:
    """Remove the shared folders under `root` whose processes have ended."""
    for lock in root.glob(f"{PREFIX}*/{LOCK}"):
        try:
            with lock.open() as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:
            continue  # in use, another user's, or just removed
