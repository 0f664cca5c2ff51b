"""Ctrl-C before anything is started: one line and exit code 130, wherever the imports are. Imports next to nothing."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

INTERRUPTED = 130


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """While libraries are imported, which takes seconds: an exception would come out of whatever file is being read, as
    a traceback of some 80 lines or as an error of the library that caught it. Nothing is there yet to be closed."""
    previous = signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _end(*_: object) -> None:
    os.write(2, f"interrupted on rank {os.environ.get('RANK', '0')}\n".encode())
    os._exit(INTERRUPTED)
