"""A stand-in for vLLM's HTTP API whose answers a test scripts. It generates nothing."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

from aiohttp import web

Body = dict[str, Any]
Script = Callable[[Body, int], tuple[int, Body | str | bytes]]
"""(request body, how many generate requests came before) -> (status, answer)"""


def answer(
    body: Body, *, version: str = "0", finish_reason: str = "stop", tokens: list[int] | None = None
) -> Body:
    """What the generate route returns: sample i is `tokens`, or (seed + i) mod 100, 1."""
    seed, samples = body["sampling_params"]["seed"], body["sampling_params"]["n"]
    choices = []
    for i in reversed(range(samples)):  # vLLM promises no order
        sampled = tokens or [(seed + i) % 100, 1]
        choices.append(
            {
                "index": i,
                "token_ids": sampled,
                "finish_reason": finish_reason,
                "logprobs": {"content": [{"token_id": t, "logprob": -0.5} for t in sampled]},
                "weight_versions": [{"version": version, "start": 0, "end": len(sampled)}],
            }
        )
    return {"choices": choices}


class FakeVLLM:
    """Listens on a free port in a thread of its own. A context manager."""

    def __init__(self, script: Script | None = None, version: str = "0") -> None:
        self.script = script or (lambda body, count: (200, answer(body, version=self.version)))
        self.version = version
        self.bodies: list[Body] = []
        self.calls: list[tuple[str, Body | None]] = []
        self.queries: list[dict[str, str]] = []
        """Query parameters of each call."""
        self.model, self.max_model_len = "model", 4096
        self.delay = 0.0
        self.reading: asyncio.Lock | None = None
        """Requests are read one after the other, `read_seconds` each, before they are counted. None: at once."""
        self.read_seconds = 0.0
        self.slots: asyncio.Semaphore | None = None
        """How many requests are served at a time; None: all."""
        self.answer_while_paused = False
        self.full: int | None = None
        """So many generate requests resume a paused server."""
        self.fail: dict[str, str] = {}
        """Control path -> text of the 500 it answers."""
        self._load = 0
        """Generate requests that are not answered yet."""
        self.most_open = 0
        """Of them at a time."""

    def __enter__(self) -> FakeVLLM:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def pause(self) -> None:
        self._loop.call_soon_threadsafe(self._running.clear)

    def resume(self) -> None:
        self._loop.call_soon_threadsafe(self._running.set)

    def count_down(self, requests: int) -> None:
        """The load is reported too low by this many requests, or too high if it is below 0."""
        self._load -= requests

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self._running = asyncio.Event()
        self._running.set()
        app = web.Application()
        app.router.add_post("/inference/v1/generate", self._generate)
        app.router.add_route("*", "/{path:.*}", self._control)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        async with self.reading or contextlib.nullcontext():
            await asyncio.sleep(self.read_seconds)
        count = len(self.bodies)
        self.bodies.append(body)
        self._load += 1
        self.most_open = max(self.most_open, self._load)
        if self._load == self.full:
            self._running.set()
        try:
            if not self.answer_while_paused:
                await self._running.wait()
            async with self.slots or contextlib.nullcontext():
                await asyncio.sleep(self.delay)
            status, payload = self.script(body, count)
            if isinstance(payload, bytes):
                return web.Response(body=payload, status=status, content_type="application/json")
            return web.json_response(payload, status=status)
        finally:
            self._load -= 1

    async def _control(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        path = request.path
        self.calls.append((path, body))
        self.queries.append(dict(request.query))
        if path in self.fail:
            return web.Response(status=500, text=self.fail[path])
        if path == "/v1/models":
            return web.json_response({"data": [{"id": "m", "root": self.model, "max_model_len": self.max_model_len}]})
        if path == "/finish_weight_update":
            self.version = body["weight_version"]
        if path == "/pause":
            self._running.clear()
        if path == "/resume":
            self._running.set()
        state = {"weight_version": self.version, "server_load": self._load, "is_paused": not self._running.is_set()}
        return web.json_response(state)
