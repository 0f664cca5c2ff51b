"""Requests that start together: the engine is paused, given all of them, and resumed. Deterministic runs need it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from pyrl.rollout import vllm_adapter as vllm
from pyrl.rollout.errors import Failure, Retryable, RolloutError

LOAD_SECONDS = 30.0
"""Deadline of waiting for a load, and for the next of many requests to be counted."""
SETTLE_SECONDS = 1.0
"""For which a server's load must not change to be looked into."""
POLL_SECONDS = 0.002

Control = Callable[..., Awaitable[dict[str, Any]]]
"""(method, address, params=None) -> answer; raises Retryable."""


class FrozenQueue:
    """One server's queue, which nobody else may use.

    /load counts the requests inside the API server. It is right about requests that arrive, but not about those that
    leave: vLLM 0.32 counts them down in several threads at once, so that a count may get lost, and counts some down
    twice when their client goes away. So an idle server may report another load than 0, until it is restarted.
    """

    def __init__(self, url: str, control: Control) -> None:
        self._url = url
        self._control = control
        self._idle_load = 0

    @contextlib.asynccontextmanager
    async def frozen(self) -> AsyncIterator[list[asyncio.Task]]:
        """The engine starts on the requests sent inside the block, added to the list, when it has all of them.

        Many go in parts, each after `wait_enqueued`: a server that reads thousands of requests has no time to say how
        many it has. Raises Retryable, and RolloutError where the server's load does not become what it must be.
        """
        tasks: list[asyncio.Task] = []
        await self._wait_idle()
        async with self._paused("keep"):
            yield tasks
            await self.wait_enqueued(tasks)

    async def _wait_idle(self) -> None:
        """Until requests that were given up have left the server.

        A load that is still there when the engine has finished all it had counts nothing: it is the idle load from then
        on.
        """
        deadline = _now() + LOAD_SECONDS
        while (load := await self._settled_load(deadline)) != self._idle_load:
            async with self._paused("wait"):
                if await self._settled_load(deadline) == load:
                    self._idle_load = load

    async def _settled_load(self, deadline: float) -> int:
        """The load once it is the idle load, or has not changed for SETTLE_SECONDS."""
        load, since = await self._load(), _now()
        while load != self._idle_load and _now() - since <= SETTLE_SECONDS:
            await self._tick(deadline, load)
            if (latest := await self._load()) != load:
                load, since = latest, _now()
        return load

    async def wait_enqueued(self, tasks: list[asyncio.Task]) -> None:
        """Until the frozen engine's queue holds all requests; the scheduler then orders them by priority.

        Each is sent to the engine in the turn of the event loop that counted it, ahead of the two /is_paused, which
        travel the same way and come back from the engine.
        """
        failures: list[Failure] = []

        def ended(task: asyncio.Task) -> None:
            if not task.cancelled() and task.exception() is None and isinstance(task.result(), Failure):
                failures.append(task.result())

        for task in tasks:
            task.add_done_callback(ended)
        most, deadline = 0, _now() + LOAD_SECONDS
        while (load := await self._load()) < self._idle_load + len(tasks):
            if failures:
                raise Retryable(f"failed while it was given requests: {failures[0].reason}")
            if load > most:
                most, deadline = load, _now() + LOAD_SECONDS
            await self._tick(deadline, load)
        for _ in range(2):
            await self._control("GET", self._url + vllm.IS_PAUSED)

    @contextlib.asynccontextmanager
    async def _paused(self, mode: str) -> AsyncIterator[None]:
        """`keep` freezes requests in flight, `wait` lets them finish first; new ones queue up."""
        try:
            await self._control("POST", self._url + vllm.PAUSE, params={"mode": mode, "clear_cache": "false"})
            yield
        finally:
            with contextlib.suppress(Retryable):
                await self._control("POST", self._url + vllm.RESUME)

    async def _load(self) -> int:
        return (await self._control("GET", self._url + vllm.LOAD))["server_load"]

    async def _tick(self, deadline: float, load: int) -> None:
        if _now() > deadline:
            raise RolloutError(
                f"{self._url} still counts {load} requests after {LOAD_SECONDS:g} s: deterministic runs need a server "
                "of their own, with --enable-server-load-tracking and --scheduling-policy priority"
            )
        await asyncio.sleep(POLL_SECONDS)


def _now() -> float:
    return asyncio.get_running_loop().time()
