r"""Answers to a multiple choice: a letter, alone or with what it stands for (`(D) 7`, `D: 7`, `\text{(C) }5`).

Standard library only; every function is linear in the length of its input.
"""

from __future__ import annotations

import re

from pyrl.reward.answers import strip_wrappers

_CHOICE = re.compile(
    r"\\(?:text(?:bf|rm|it|sf)?|math(?:bf|rm|it|sf))\s*\{\s*\(?(?P<font>[A-J])\)?[.):]?\s*\}|\((?P<round>[A-J])\)"
    r"|(?P<label>[A-J])(?:[.:](?=\s+\S)|\)(?=\s*\S))|(?P<bare>[A-J])"
)
_BLANK = re.compile(r"(?:\\[ ,;:!]|~|\s|\\q?quad(?![a-zA-Z])|:)+")
_OPERATOR = re.compile(r"[-+*/^=_!,;<>|&]|\\(?:cup|cap|in|to|le|ge|cdot|times|text\s*\{\s*(?:or|and))(?![a-zA-Z])")


def split_choice(text: str) -> tuple[str, str] | None:
    """(letter, what follows it) of a multiple-choice answer; None for another one."""
    text = strip_wrappers(text)
    match = _CHOICE.match(text)
    rest = text[match.end() :] if match else ""
    if match is None or match.lastgroup is None or (rest.strip() and match.lastgroup == "bare"):
        return None
    return match.group(match.lastgroup), rest


def choice_content(text: str) -> str | None:
    """What stands behind the letter (`7` of `(D) 7`); None where there is no letter, or nothing or a term behind it."""
    found = split_choice(text)
    if found is None or not found[1].strip():
        return None
    blank = _BLANK.match(found[1])
    content = strip_wrappers(found[1][blank.end() :] if blank else found[1])
    if blank and re.match(r"-\s*(?:[0-9.]|\\)", content):  # `(D) -7`
        return content
    return None if not content or _OPERATOR.match(content) else content
