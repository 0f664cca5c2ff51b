"""Where log lines go."""

from __future__ import annotations

import logging


def log_to_terminal() -> None:
    """pyrl's messages and the libraries' warnings to stderr, a line each with its time."""
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")  # of libraries: warnings
    logging.getLogger("pyrl").setLevel(logging.INFO)
