"""The deadline of requests that a server queues: how long it may be silent."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import OrderedDict
from collections.abc import AsyncIterator


class SilenceDeadline:
    """For the requests that one server has: `seconds` from its last answer, or from when a request was sent.

    A request's age says nothing: it may wait for others, because `max_num_seqs` or the KV cache is exhausted, and a
    long response takes longer than a short one. But a server always decodes the request that comes first in its queue,
    so that, however long the queue is, it answers one in the time that a response of full length takes.

    An answer only notes the time: one timer watches over all requests, looks at the oldest of them, which is due first,
    and is set again for when that will be. So an answer costs the same however many requests are open.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._sent: OrderedDict[asyncio.Timeout, float] = OrderedDict()
        """When each open request was sent, oldest first. No plain dict: it finds its first key by a search."""
        self._last_answer = -math.inf
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Around one request; TimeoutError when the server was silent for too long."""
        async with asyncio.timeout(None) as deadline:
            self._sent[deadline] = asyncio.get_running_loop().time()
            if self._timer is None:
                self._look()
            try:
                yield
            finally:
                self._sent.pop(deadline, None)
                if not self._sent and self._timer is not None:
                    self._timer.cancel()
                    self._timer = None

    def answered(self) -> None:
        """The server gave an answer: all that wait for it go on waiting."""
        self._last_answer = asyncio.get_running_loop().time()

    def silent_for(self, since: float) -> float:
        """Seconds without an answer, of those after `since`, a time of the event loop."""
        return asyncio.get_running_loop().time() - max(since, self._last_answer)

    def _look(self) -> None:
        """End what is due, and look again when the oldest of the others may be."""
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._sent:
            oldest, sent = next(iter(self._sent.items()))
            due = max(sent, self._last_answer) + self.seconds
            if due > loop.time():
                self._timer = loop.call_at(due, self._look)
                return
            del self._sent[oldest]
            oldest.reschedule(loop.time())
