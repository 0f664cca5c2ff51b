"""Inside a sandbox of its own, as process 1: runs trusted tests against a program in another sandbox.

The tests see plain data alone: a function of the program is a call over a socket (codec.py). The verdict goes to the
parent on `channel`, which the program never had, beside the secret of this run.
"""

from __future__ import annotations

import ast
import builtins
import os
import socket
from collections.abc import Callable
from typing import Any

import codec
import frames

NAME = "tests.py"


class ProgramError(Exception):
    """The program raised what has no built-in type, returned no plain data, or has gone."""


def serve(channel: socket.socket, request: dict) -> None:
    """Send `{"secret", "outcome", "reason"}`: right, wrong, or unjudged where the tests themselves are at fault."""
    outcome, reason = _judge(request)
    frames.send(channel, {"secret": request["secret"], "outcome": outcome, "reason": reason[:500]})


def _judge(request: dict) -> tuple[str, str]:
    try:
        tree = ast.parse(request["tests"], NAME)
        code = compile(tree, NAME, "exec")
    except (SyntaxError, ValueError, RecursionError) as error:
        return "unjudged", f"the tests do not compile: {error}"
    calls = socket.socket(fileno=request["calls"])
    os.set_blocking(request["calls"], True)
    try:
        problem = frames.receive(calls)["problem"]
        if problem is not None:
            return "wrong", str(problem)
        names: dict[str, Any] = {"__name__": "tests"}
        names |= {name: _proxy(calls, name) for name in [*_unknown_names(tree), request["entry_point"]] if name}
        exec(code, names)
        if "check" in names and request["entry_point"]:
            names["check"](names[request["entry_point"]])
    except AssertionError as error:
        return "wrong", f"a test failed: {error}"
    except Exception as error:  # of the program, or of a test that its value does not suit
        return "wrong", f"{type(error).__name__}: {error}"
    return "right", "every test passed"


def _proxy(calls: socket.socket, name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        frames.send(calls, {"name": name, "arguments": codec.encode((arguments, keywords))})
        answer = frames.receive(calls)
        if "raised" in answer:
            kind = getattr(builtins, str(answer["raised"]), None)
            is_error = isinstance(kind, type) and issubclass(kind, Exception)
            raise (kind if is_error and kind is not AssertionError else ProgramError)(str(answer["text"]))
        return codec.decode(answer["value"])

    call.__name__ = name
    return call


def _unknown_names(tree: ast.Module) -> set[str]:
    """What the tests use and neither they nor Python define: the program's functions."""
    used, defined = set(), set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ExceptHandler) and node.name:
            defined.add(node.name)
    return used - defined
