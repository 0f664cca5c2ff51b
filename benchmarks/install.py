"""Installs the peers into build/bench-peers, each on its own; errors are kept for the table. .venv stays as it is."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.peers import ALL, FOLDER, INSTALL_ERRORS, Peer


def install(peer: Peer) -> str:
    """The error, or nothing."""
    command = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-build-isolation", "--upgrade"]
    done = subprocess.run([*command, "--target", str(FOLDER), *peer.requirements], capture_output=True, text=True)
    return "" if done.returncode == 0 else error_of(done.stderr)


def error_of(output: str) -> str:
    """What a package's own build said last; else pip's first line that names an error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if "[end of output]" in lines[1:]:
        return lines[lines.index("[end of output]") - 1]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "pip failed in silence")


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    errors = {}
    for peer in ALL:
        error = install(peer)
        print(f"{peer.name}: {error or 'installed'}")
        if error:
            errors[peer.name] = error
        (FOLDER / INSTALL_ERRORS).write_text(json.dumps(errors, indent=2))


if __name__ == "__main__":
    main()
