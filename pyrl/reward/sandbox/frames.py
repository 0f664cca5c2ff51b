"""Messages on a stream socket: four bytes of length, then JSON. Standard library only."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

MAX_BYTES = 16 << 20
"""Of a message: what untrusted code sends must not fill the reader's memory."""
_LENGTH = struct.Struct("!I")


class ClosedError(EOFError):
    """The other side has gone, or does not speak this protocol."""


def send(channel: socket.socket, message: Any) -> None:
    """Raises ValueError for a message above `MAX_BYTES`, OSError where the other side has gone."""
    body = json.dumps(message).encode()
    if len(body) > MAX_BYTES:
        raise ValueError(f"a message of {len(body)} bytes is above the limit of {MAX_BYTES}")
    channel.sendall(_LENGTH.pack(len(body)) + body)


def receive(channel: socket.socket) -> Any:
    """The next message. Raises ClosedError; TimeoutError by the socket's own limit."""
    (length,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size))
    if length > MAX_BYTES:
        raise ClosedError(f"a message of {length} bytes was announced, above the limit of {MAX_BYTES}")
    try:
        return json.loads(_exactly(channel, length))
    except (ValueError, RecursionError) as error:
        raise ClosedError(f"not a message: {error}") from error


def _exactly(channel: socket.socket, count: int) -> bytes:
    chunks = []
    while count:
        try:
            chunk = channel.recv(min(count, 1 << 20))
        except ConnectionError as error:
            raise ClosedError(str(error)) from error
        if not chunk:
            raise ClosedError("the other side has closed")
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)
