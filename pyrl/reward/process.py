"""One grader process as its parent sees it: start, send, read, kill. No call here blocks, except `start` and `kill`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

STARTUP_SECONDS = 120.0
"""Deadline for importing the grader's libraries."""

_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR")
"""All that a grader sees of the environment: no secrets, no rank, no CUDA device."""
_FIXED_VARIABLES = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"}

_spawner_lock = threading.Lock()
_spawner: ThreadPoolExecutor | None = None


class GraderStartError(RuntimeError):
    """A grader process could not be started."""


class GraderProcess:
    """A running `pyrl.reward.worker`.

    `pending` holds the items that were sent and not yet answered, oldest first: the first one is being graded.
    """

    def __init__(self, loader: str, variant: str) -> None:
        self._command = [sys.executable, "-P", "-W", "ignore", "-m", "pyrl.reward.worker", loader, variant]
        self.pending: deque[int] = deque()
        self.start()

    def start(self) -> None:
        """Start the process, anew if one was killed."""
        command = [*self._command, str(os.getpid())]
        self._process = _spawn_thread().submit(_spawn, command).result()
        self.ready = False
        self.deadline = time.monotonic() + STARTUP_SECONDS
        self._unsent = memoryview(b"")
        self._unread = b""
        for descriptor in (self.write_fd, self.read_fd):
            os.set_blocking(descriptor, False)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def write_fd(self) -> int:
        return self._process.stdin.fileno()

    @property
    def read_fd(self) -> int:
        return self._process.stdout.fileno()

    @property
    def has_unsent(self) -> bool:
        return len(self._unsent) > 0

    @property
    def ended(self) -> bool:
        """Whether the process has ended; it is not reaped, so that `kill` cannot hit another that got its id."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def queue(self, indices: Sequence[int], items: Sequence[tuple[str, str]]) -> None:
        """Take a batch; `flush` sends it. Only for a worker with nothing pending."""
        self.pending.extend(indices)
        self._unsent = memoryview(json.dumps(items).encode() + b"\n")

    def flush(self) -> None:
        """Send as much as the pipe takes. A broken pipe shows at the next `receive`."""
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self.write_fd, self._unsent) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._unsent = memoryview(b"")

    def receive(self) -> list[list[Any]] | None:
        """Every message that has arrived, in order; None when the process has closed its end and all was read."""
        chunks = [self._unread]
        closed = False
        while True:
            try:
                chunk = os.read(self.read_fd, 1 << 16)
            except BlockingIOError:
                break
            if not chunk:
                closed = True
                break
            chunks.append(chunk)
        *lines, self._unread = b"".join(chunks).split(b"\n")
        if not lines and closed:
            return None
        return [json.loads(line) for line in lines]

    def kill(self) -> str:
        """Kill the process and what it started, reap it, close the pipes. Returns how it ended, in words.

        A second call only says so again.
        """
        if self._process.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)
        code = self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _spawn(command: list[str]) -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ} | _FIXED_VARIABLES
    root = Path(__file__).resolve().parents[2]
    if root.name not in ("site-packages", "dist-packages"):  # a checkout that may not be installed
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), environment.get("PYTHONPATH"))))
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,  # Ctrl-C is the parent's to handle, and kill() gets the whole group
        )
    except OSError as error:
        raise GraderStartError(f"cannot start a grader process: {error}") from error


def _spawn_thread() -> ThreadPoolExecutor:
    """A thread that lives as long as this process. Workers ask the kernel to die with their parent, and to the kernel
    that is the thread which started them: started from a caller's thread they would die when it ends."""
    global _spawner
    with _spawner_lock:
        if _spawner is None:
            _spawner = ThreadPoolExecutor(1, thread_name_prefix="pyrl-reward-spawner")
        return _spawner


def _forget_after_fork() -> None:
    global _spawner, _spawner_lock
    _spawner, _spawner_lock = None, threading.Lock()  # threads do not survive a fork


os.register_at_fork(after_in_child=_forget_after_fork)
