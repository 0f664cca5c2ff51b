"""Values that cross between a program and its tests: plain data, as JSON. Standard library only.

An object is sent as the built-in type that it is or extends, read by that type's own methods: what arrives compares as
plain data whatever `__eq__` its class had.
"""

from __future__ import annotations

from typing import Any

MAX_DEPTH = 100
_SCALARS = (bool, int, float, complex, str, bytes, type(None))
_CONTAINERS = (list, tuple, set, frozenset, dict)


class NotPlainError(TypeError):
    """The value is not plain data, or nested too deeply."""


def encode(value: Any, depth: int = MAX_DEPTH) -> list:
    """JSON for `value`. Raises NotPlainError."""
    if depth == 0:
        raise NotPlainError(f"a value nested more than {MAX_DEPTH} deep")
    kind = next((base for base in type(value).__mro__ if base in _SCALARS or base in _CONTAINERS), None)
    match kind:
        case None:
            raise NotPlainError(f"a value of type {type(value).__name__} is not plain data")
        case _ if kind is type(None):
            return ["none"]
        case _ if kind is bool:
            return ["bool", value is True]
        case _ if kind is int:
            return ["int", int.__format__(value, "x")]
        case _ if kind is float:
            return ["float", float.hex(value)]
        case _ if kind is complex:
            return ["complex", float.hex(value.real), float.hex(value.imag)]
        case _ if kind is str:
            return ["str", str.__str__(value)]
        case _ if kind is bytes:
            return ["bytes", bytes.hex(value)]
        case _ if kind is dict:
            return ["dict", [[encode(k, depth - 1), encode(v, depth - 1)] for k, v in dict.items(value)]]
        case _:
            return [kind.__name__, [encode(item, depth - 1) for item in kind.__iter__(value)]]


def decode(data: Any) -> Any:
    """What `encode` was given, of built-in types. Raises NotPlainError for anything that it does not make."""
    try:
        return _decode(data)
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, RecursionError) as error:
        raise NotPlainError(f"not an encoded value: {error}") from error


def _decode(data: list) -> Any:
    match data:
        case ["none"]:
            return None
        case ["bool", bool(value)]:
            return value
        case ["int", str(text)]:
            return int(text, 16)
        case ["float", str(text)]:
            return float.fromhex(text)
        case ["complex", str(real), str(imaginary)]:
            return complex(float.fromhex(real), float.fromhex(imaginary))
        case ["str", str(text)]:
            return text
        case ["bytes", str(text)]:
            return bytes.fromhex(text)
        case ["dict", list(items)]:
            return {_decode(key): _decode(value) for key, value in items}
        case [("list" | "tuple" | "set" | "frozenset") as kind, list(items)]:
            return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](map(_decode, items))
    raise NotPlainError("not an encoded value")

