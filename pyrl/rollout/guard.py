"""Runs one command and leaves nothing of it behind, however the program that wanted it ends.

    python guard.py PARENT_PID GRACE_SECONDS FOLDER_OR_DASH [COMMAND...]

The guard ends the command when its parent (PARENT_PID) is gone, killed without warning included, when it gets SIGTERM,
and when the command's main process ends but leaves children. Descendants that lost their parent are adopted by the
guard, so all are found. FOLDER is removed when the parent is gone: nobody else would. Without a command the guard
watches over the folder alone. Standard library only, so that it starts in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time

POLL_SECONDS = 0.2
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


def command_line(*, grace: float, folder: os.PathLike | None = None, command: list[str] | None = None) -> list[str]:
    """What starts a guard whose parent is this process; `grace`: seconds between SIGTERM and SIGKILL."""
    runner = [sys.executable, "-S", "-E", __file__]
    return [*runner, str(os.getpid()), str(grace), "-" if folder is None else str(folder), *(command or ())]


def descendants(root: int) -> list[int]:
    """Process ids below `root`, read from /proc; zombies left out."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat:
                state, parent = stat.read().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            children.setdefault(int(parent), []).append(int(name))
    found, frontier = [], [root]
    while frontier:
        below = children.get(frontier.pop(), [])
        found += below
        frontier += below
    return found


def signal_all(number: signal.Signals) -> None:
    for pid in descendants(os.getpid()):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def end_descendants(process: subprocess.Popen, grace: float) -> None:
    """SIGTERM to the main process, SIGKILL to whatever is left after `grace` seconds, until nothing is."""
    if process.poll() is None:
        process.terminate()
    deadline = time.monotonic() + grace
    while descendants(os.getpid()) and time.monotonic() < deadline:
        process.poll()
        time.sleep(0.05)
    while descendants(os.getpid()):
        signal_all(signal.SIGKILL)
        process.poll()
        time.sleep(0.02)


def _die_with_guard() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    parent, grace, folder, command = int(arguments[0]), float(arguments[1]), arguments[2], arguments[3:]
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    process = subprocess.Popen(command, preexec_fn=_die_with_guard) if command else None
    while (process is None or process.poll() is None) and not stopping and os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    orphaned = os.getppid() != parent
    if process is not None:
        end_descendants(process, 0.5 if orphaned else grace)
    if orphaned and folder != "-":
        shutil.rmtree(folder, ignore_errors=True)
    code = 0 if process is None else process.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
