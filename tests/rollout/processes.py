"""Waiting for processes to come and go."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil


def wait_for(condition: Callable[[], object], seconds: float = 15.0) -> object:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.05)
    return value


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    def lives(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [p for p in processes if lives(p)]


def killable_process(code: str) -> tuple[list[str], Callable[[], None]]:
    """The words of the first line that `code` prints in a process of its own, and what kills it without warning."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

    def kill() -> None:
        process.send_signal(signal.SIGKILL)
        process.communicate()

    return process.stdout.readline().split(), kill
