"""`pyrl ...` in a process forked from one that has imported it already: an import takes 10 s of a core, and no test
needs it fifty times. All else is as a user's: a process and session of its own, the command line, signals, exit code.
"""

from __future__ import annotations

import os
import signal
import socket
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


def start(arguments: list[str], log: Path, **variables: str) -> Program:
    """`pyrl` with these arguments, and `variables` in its environment; its output is appended to `log`."""
    environment = dict(os.environ) | variables
    process = fork_server().Process(target=_main, args=(arguments, str(log), os.getcwd(), environment))
    process.start()
    return Program(process)


def start_ranks(count: int, arguments: list[str], log: Path) -> list[Program]:
    """Those of one node, with the environment that torchrun gives them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [start(arguments, log, RANK=str(rank), LOCAL_RANK=str(rank), **world) for rank in range(count)]


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
