"""A worker process. Imports little: what the libraries say while they load has to be silenced first."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event

from pyrl.foreign_warnings import silence_foreign_output
from pyrl.telemetry.log import log_to_terminal


def work(connection: Connection, asked_to_stop: Event) -> None:
    """Receive a `ServerStart`, then a `Job` at a time, and answer each with whether it came to its end or with the
    ConfigError that refused it. Ends with the connection, however the process that started this one ends."""
    for asked in (signal.SIGINT, signal.SIGTERM):  # may reach the whole group: the one that started this one tells it
        signal.signal(asked, lambda *_: None)  # not SIG_IGN, which servers and graders would inherit
    os.environ["TERM"] = "dumb"  # lines: workers that share a terminal cannot each redraw a bar
    silence_foreign_output()
    log_to_terminal()
    from pyrl.config import ConfigError

    starter = multiprocessing.parent_process()
    try:
        with connection.recv().start() as servers:
            while True:
                job = connection.recv()
                try:
                    result = job.run(servers, lambda: asked_to_stop.is_set() or not starter.is_alive())
                except ConfigError as error:
                    result = error
                connection.send(result)
    except (EOFError, BrokenPipeError):
        return
