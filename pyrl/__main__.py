"""`pyrl` and `python -m pyrl`."""

from __future__ import annotations

from pyrl.interrupts import ending_at_once


def main() -> None:
    """Import the command line, then run it."""
    with ending_at_once():
        from pyrl.cli import main as run
    run()


if __name__ == "__main__":  # saving a checkpoint may start a process that imports this module again
    main()
