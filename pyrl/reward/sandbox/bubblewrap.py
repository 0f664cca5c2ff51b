"""The sandbox by bubblewrap, for users who may not make namespaces themselves where AppArmor lets bubblewrap make them.

The same namespaces and the same root, but for the number of files in /scratch, which bubblewrap cannot limit; the
interpreter's program and the launcher can be read in it. Not for root: the limit on processes would not hold. Not by a
bubblewrap that is installed set-user-id, which cannot forbid further user namespaces.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

NAMESPACES = ("user", "pid", "net", "ipc", "uts")
USER = "1000"
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
LAUNCHER_FOLDER = "/launcher"
EMPTY_BYTES = 4096


def find() -> str | None:
    """Its program, where it is installed and this user is not root."""
    return None if os.geteuid() == 0 else shutil.which("bwrap")


def command(
    program: str, launcher: Path, arguments: Sequence[str], visible: Sequence[str], hidden: Sequence[str], scratch: int
) -> list[str]:
    """The argument vector that runs `launcher` as process 1 of a sandbox. `scratch`: bytes. Needs bubblewrap 0.8."""
    python = os.path.realpath(sys.executable)
    words = [program, *(f"--unshare-{name}" for name in NAMESPACES), "--disable-userns", "--die-with-parent"]
    words += ["--as-pid-1", "--new-session", "--clearenv", "--cap-drop", "ALL", "--uid", USER, "--gid", USER]
    for path in [*visible, python]:
        words += ["--ro-bind", path, path]
    for path in hidden:
        words += ["--size", str(EMPTY_BYTES), "--tmpfs", path, "--remount-ro", path]
    for path in DEVICES:
        words += ["--dev-bind", path, path]
    words += ["--ro-bind", str(launcher.parent), LAUNCHER_FOLDER]
    words += ["--size", str(scratch), "--perms", "0777", "--tmpfs", "/scratch", "--remount-ro", "/"]
    started = [python, "-I", "-S", "-B", f"{LAUNCHER_FOLDER}/{launcher.name}", *arguments]
    return [*words, "--chdir", "/scratch", "--", *started]
