"""`pyrl ...` in a process forked from one that has imported it already: an import takes 10 s of a core, and no test
needs it fifty times. All else is as a user's: a process and session of its own, the command line, signals, exit code.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from tests.ops.gloo import fork_server


class Program:
    """A command that was started; as `subprocess.Popen`, as far as tests need it."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        self.pid: int = process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; minus the signal that ended it. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("pyrl", timeout)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def start(arguments: list[str], log: Path) -> Program:
    """`pyrl` with these arguments; its output is appended to `log`."""
    process = fork_server().Process(target=_main, args=(arguments, str(log), os.getcwd(), dict(os.environ)))
    process.start()
    return Program(process)


def run(arguments: list[str], seconds: float = 200.0) -> tuple[int, str]:
    """Exit code and output of `pyrl` with these arguments."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        program = start(arguments, log)
        try:
            return program.wait(seconds), log.read_text()
        finally:
            program.kill()


def _main(arguments: list[str], log: str, folder: str, environment: dict[str, str]) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment | {"OMP_NUM_THREADS": "1"})
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["pyrl", *arguments]
    from pyrl.cli import main

    main()
