"""In a vLLM server's place: `python -m benchmarks.late_server OPEN ALL` keeps `OPEN` generate requests waiting.

It answers the oldest of them, a burst at a time as an engine's steps do, when so many wait or all have come. The first
line that it prints is its URL; it ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque

from pyrl.rollout.open_files import allow_requests

BURST = 64
"""Answers at a time, of at least eight times as many that wait."""
TOKENS = (9, 12, 5, 0)
_CHOICE = {
    "index": 0,
    "token_ids": list(TOKENS),
    "finish_reason": "stop",
    "logprobs": {"content": [{"token_id": token, "logprob": -0.5} for token in TOKENS]},
    "weight_versions": [{"version": "default", "start": 0, "end": len(TOKENS)}],
}
_BODY = json.dumps({"choices": [_CHOICE]}).encode()
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)


class Queue:
    def __init__(self, most: int, total: int) -> None:
        self._most, self._left = most, total
        self._burst = max(1, min(BURST, most // 8))
        self._waiting: deque[asyncio.WriteTransport] = deque()

    def add(self, connection: asyncio.WriteTransport) -> None:
        self._waiting.append(connection)
        self._left -= 1
        if self._left == 0 or len(self._waiting) >= self._most:
            for _ in range(len(self._waiting) if self._left == 0 else self._burst):
                self._waiting.popleft().write(ANSWER)


class Connection(asyncio.Protocol):
    """One request after the other, as much of HTTP as the client speaks."""

    def __init__(self, queue: Queue) -> None:
        self._queue, self._data = queue, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if end and lengths == [len(body)]:
            self._data = b""
            self._queue.add(self._transport)


async def serve(most: int, total: int) -> None:
    queue, loop = Queue(most, total), asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(queue), "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    allow_requests(int(sys.argv[1]))
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
