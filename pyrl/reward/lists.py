r"""Answers of several parts with words between them: `1 or 2`, `(1,2) \text{ and } (3,4)`, `x<1 \text{ or } x>2`.

The LaTeX reader gives up on some of them and takes the last equation for the whole, so they are taken apart before.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_FONT = r"\\(?:text(?:rm|bf|it|normal)?|math(?:rm|bf|it)|mbox)"
_TOKEN = re.compile(
    rf"(?P<word>(?:{_FONT}\s*\{{[\s,;]*(?P<font>or|and)[\s,;]*\}}|(?<![A-Za-z\\])(?P<plain>or|and)(?![A-Za-z])"
    r"|\\(?P<sign>lor|vee|land)(?![A-Za-z])))|\\[{}]|\\.|[()\[\]{},;]",
    re.IGNORECASE | re.DOTALL,
)
_OPENING, _CLOSING = ("(", "[", "{", r"\{"), (")", "]", "}", r"\}")
_THOUSANDS = re.compile(r"(?:^|[^0-9])[0-9]{1,3}(?:,[0-9]{3})+\s*$")
_EDGE = re.compile(r"^(?:\s|[,;~]|\\[ ,;:!]|\\q?quad(?![a-zA-Z]))+|(?:\s|[,;~]|\\[ ,;:!]|\\q?quad(?![a-zA-Z]))+$")


def split_list(text: str) -> tuple[list[str], str] | None:
    r"""(parts, `or` / `and`) of a list with one of these words outside of all brackets; None for anything else.

    Commas of such a list separate as well (`1, 2 or 3`). Linear time.
    """
    pieces, start, depth, words = [], 0, 0, set()
    for token in _TOKEN.finditer(text):
        word = token["font"] or token["plain"] or {"lor": "or", "vee": "or", "land": "and"}.get(token["sign"] or "")
        depth += (token.group() in _OPENING) - (token.group() in _CLOSING)
        if depth == 0 and word:
            words.add(word.lower())
        if depth == 0 and (word or token.group() in (",", ";")):
            pieces.append((text[start : token.start()], token.group()))
            start = token.end()
    if not words:
        return None
    pieces.append((text[start:], ""))
    parts = [part for part in map(_trim, _thousands_joined(pieces)) if part]
    return parts, "or" if "or" in words else "and"


def _thousands_joined(pieces: list[tuple[str, str]]) -> list[str]:
    """`1,000 or 2,000` are two numbers: a comma before three digits and after one to three is no separator."""
    joined, pending = [], ""
    for (text, separator), following in zip(pieces, [*pieces[1:], ("", "")], strict=True):
        pending += text
        if separator == "," and _THOUSANDS.search(f"{pending},{following[0]}"):
            pending += ","
        else:
            joined.append(pending)
            pending = ""
    return joined


def _trim(text: str) -> str:
    return _EDGE.sub("", text)


def list_readings(text: str, read: Callable[[str], Any]) -> list[Any] | None:
    """What a list may stand for, as sympy sets: its parts, or for `or` the union of its intervals and inequalities.

    None: it is no such list. Raises what `read` raises for a part.
    """
    from latex2sympy2_extended.sets import FiniteSet
    from sympy import Intersection, Interval, Union
    from sympy.core.relational import Eq, Relational

    found = split_list(text)
    if found is None:
        return None
    parts, word = found
    trees = [read(part) for part in parts]
    if any(isinstance(tree, Relational) and not isinstance(tree, Eq) for tree in trees):
        ranges = [tree.as_set() if isinstance(tree, Relational) else tree for tree in trees]
        return [(Union if word == "or" else Intersection)(*ranges)]
    if word == "or" and all(isinstance(tree, Interval) for tree in trees):
        return [Union(*trees), FiniteSet(*trees)]
    return [FiniteSet(*trees)]
