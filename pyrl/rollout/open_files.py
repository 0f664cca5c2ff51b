"""How many requests a client may have open: each is a connection, and each connection an open file."""

from __future__ import annotations

import resource

from pyrl.config import ConfigError

OPEN_REQUESTS = 2048
"""Of one server, at least: twice the most sequences that vLLM decodes together by its own defaults."""
SPARE_FILES = 256
"""Beside one a request."""


def open_requests(max_num_seqs: int) -> int:
    """How many requests a server is given at a time.

    At twice the sequences that it decodes together its queue is not empty while there is more to ask, even where only
    one of a request's samples is not finished. With many thousands it would read requests for minutes, beside other
    work, before it answered one.
    """
    return max(OPEN_REQUESTS, 2 * max_num_seqs)


def allow_requests(requests: int) -> None:
    """Raise this process's limit of open files, where it is too low. ConfigError where the system does not let it."""
    wanted = requests + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise ConfigError(f"{wanted} open files are needed, the hard limit is {hard} (ulimit -Hn): raise it")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
