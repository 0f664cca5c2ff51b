"""Ctrl-C in a real interpreter, while it imports."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyrl.interrupts import ending_at_once

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_SECONDS = 120.0


@pytest.mark.parametrize("library", ["pydantic_core", "libtorch_cpu", "pyarrow"])
def test_ctrl_c_while_a_library_is_imported_is_one_line(tmp_path: Path, library: str) -> None:
    """The command line's own libraries, then those of training: what is mapped says how far it has come."""
    command = [sys.executable, "-m", "pyrl", "train", "configs/quickstart.yaml", "model.path=/none", "data.path=/none",
               "validation.every=0"]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while library not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_SECONDS) == 130
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[-1] == "interrupted on rank 0" and len(lines) <= 2, lines


def test_afterwards_ctrl_c_is_what_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    with ending_at_once():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
