"""Inside the sandbox, as process 1: runs a program that nobody trusts. Standard library only.

Nothing here decides anything: what it reports is what the program could have printed or returned itself.
"""

from __future__ import annotations

import builtins
import os
import select
import signal
import socket
import sys
import time
from typing import Any

import codec
import frames

NAME = "program.py"

builtins.exit = builtins.quit = sys.exit  # which the `site` module brings, not loaded here


def serve_io(channel: socket.socket, request: dict) -> None:
    """For each `{"stdin": text}`: run the program as a script, answer `{"stdout", "problem"}`. `problem`: None, or why
    the run failed. No process of one run lives into the next."""
    try:
        code = compile(request["program"], NAME, "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        frames.send(channel, {"problem": f"it does not compile: {_say(error)}"})
        return
    frames.send(channel, {"problem": None})
    while True:
        try:
            case = frames.receive(channel)
        except frames.ClosedError:
            return
        stdout, problem = _run(code, case["stdin"].encode(), request["output_bytes"], case["seconds"], channel)
        _kill_all()
        _empty(".")
        frames.send(channel, {"stdout": stdout.decode("utf-8", "replace"), "problem": problem})


def serve_calls(channel: socket.socket, request: dict) -> None:
    """Define what the program defines, then answer the tests' calls on the socket `request["calls"]`."""
    calls = socket.socket(fileno=request["calls"])
    channel.close()
    names: dict[str, Any] = {"__name__": "program", "__builtins__": __builtins__}
    try:
        exec(compile(request["program"], NAME, "exec"), names)
        frames.send(calls, {"problem": None})
    except BaseException as error:  # SystemExit too
        frames.send(calls, {"problem": f"{type(error).__name__}: {_say(error)}"})
        return
    while True:
        try:
            call = frames.receive(calls)
        except frames.ClosedError:
            return
        frames.send(calls, _answer(names, call))


def _answer(names: dict[str, Any], call: dict) -> dict:
    try:
        function = names[call["name"]] if call["name"] in names else getattr(names["Solution"](), call["name"])
        arguments, keywords = codec.decode(call["arguments"])
        return {"value": codec.encode(function(*arguments, **keywords))}
    except BaseException as error:
        kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
        return {"raised": kinds[0], "text": _say(error)}


def _run(code: Any, stdin: bytes, most: int, seconds: float, channel: socket.socket) -> tuple[bytes, str | None]:
    deadline = time.monotonic() + seconds
    read_in, write_in = os.pipe()
    read_out, write_out = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(read_in, 0)
        os.dup2(write_out, 1)
        channel.close()
        os.closerange(3, 1 << 10)
        _script(code)
    os.close(read_in)
    os.close(write_out)
    output, problem = _exchange(write_in, read_out, stdin, most, deadline)
    if problem is None:
        problem = _end_of(child, deadline)
    return output, problem


def _script(code: Any) -> None:
    status = 1
    try:
        exec(code, {"__name__": "__main__", "__builtins__": __builtins__})
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(status & 255)


def _exchange(write_in: int, read_out: int, stdin: bytes, most: int, deadline: float) -> tuple[bytes, str | None]:
    """Feed and read until the program's output ends."""
    os.set_blocking(write_in, False)
    unsent, output = memoryview(stdin), bytearray()
    feeding = True
    try:
        while True:
            if feeding and not unsent:
                os.close(write_in)
                feeding = False
            left = deadline - time.monotonic()
            if left <= 0:
                return bytes(output), "timeout"
            ready, writable, _ = select.select([read_out], [write_in] if feeding else [], [], left)
            if writable:
                try:
                    unsent = unsent[os.write(write_in, unsent[:65536]) :]
                except BrokenPipeError:
                    unsent = memoryview(b"")
            if ready:
                chunk = os.read(read_out, 65536)
                if not chunk:
                    return bytes(output), None
                output += chunk
                if len(output) > most:
                    return b"", f"it printed more than {most} bytes"
    finally:
        os.close(read_out)
        if feeding:
            os.close(write_in)


def _end_of(child: int, deadline: float) -> str | None:
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            how = f"signal {-code}" if code < 0 else f"status {code}"
            return None if code == 0 else f"it ended with {how}"
        if time.monotonic() > deadline:
            return "timeout"
        time.sleep(0.0005)


def _kill_all() -> None:
    """Everyone but process 1."""
    while True:
        try:
            os.kill(-1, signal.SIGKILL)
            os.waitpid(-1, 0)
        except (ProcessLookupError, ChildProcessError):
            return


def _empty(folder: str) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            os.chmod(entry.path, 0o700)
            _empty(entry.path)
            os.rmdir(entry.path)
        else:
            os.unlink(entry.path)


def _say(error: BaseException) -> str:
    try:
        return str(error)[:200]
    except BaseException:
        return "(its text cannot be had)"
