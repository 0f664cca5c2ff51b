"""The deadline of requests that a server queues: how long it may be silent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class SilenceDeadline:
    """For the requests that one server has: `seconds` from its last answer, or from when a request was sent.

    A request's age says nothing: it may wait for others, because `max_num_seqs` or the KV cache is exhausted, and a
    long response takes longer than a short one. But a server always decodes the request that comes first in its queue,
    so that, however long the queue is, it answers one in the time that a response of full length takes.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._open: set[asyncio.Timeout] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Around one request; TimeoutError when the server was silent for too long."""
        async with asyncio.timeout(self.seconds) as deadline:
            self._open.add(deadline)
            try:
                yield
            finally:
                self._open.discard(deadline)

    def answered(self) -> None:
        """The server gave an answer: all that wait for it go on waiting."""
        later = asyncio.get_running_loop().time() + self.seconds
        for deadline in self._open:
            if not deadline.expired():
                deadline.reschedule(later)
