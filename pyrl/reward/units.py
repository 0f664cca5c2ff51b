r"""What stands around a number without being part of it: units, per-cent and degree signs, the base of its digits.

LaTeX readers drop all of these, so that 34 cm would be 34 m, and `4210_7` would be `4210_5`. Standard library only;
every function is linear in the length of its input.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pyrl.reward.unit_names import CANONICAL, COUNTED, DEGREE, PERCENT, PHRASES, POWERS_OF_TEN

_FONT = r"\\(?:text(?:rm|bf|it|normal)?|math(?:rm|bf|it)|mbox|operatorname)"
_LETTER = r"[A-Za-z\u4e00-\u9fff\u20ac\u00a2]"
_WORDS = re.compile(
    rf"(?:\\[,;:! ]|[\s~])*(?:{_FONT}\s*\{{(?P<text>[^{{}}\\]*)\}}|\(\s*(?P<bracketed>{_LETTER}{{1,20}})\s*\)"
    r"|(?<![A-Za-z\\])(?P<plain>[A-Za-z]{2,}(?:[ ]+[A-Za-z]+){0,3})|(?P<chinese>[\u4e00-\u9fff]{1,4}))"
    r"\s*(?:\^\s*\{?(?P<power>[0-9])\}?)?$"
)
_TEMPERATURE = re.compile(rf"\^\s*(?:\\circ|\{{\s*\\circ\s*\}})\s*(?:{_FONT}\s*\{{\s*)?(?P<scale>[CF])\s*\}}?$")
_DEGREE_SIGN = re.compile(r"(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree|\\deg)$")
_PERCENT_SIGN = re.compile(r"(?:\\[,;:! ]|\s)*\\?%$")
_DOLLAR_SIGN = re.compile(r"^\\\$\s*")
_PRIMES = re.compile(r"(?<=[0-9])('+|\^\s*\{?\s*\\prime\s*\}?)$")
_BASE = re.compile(r"^(?P<digits>[0-9A-F,]+)_(?:\{(?P<long>[0-9]+)\}|(?P<short>[0-9]+))$")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_PHRASE_UNITS = frozenset(PHRASES.values())
_VALUE_END = re.compile(r"[0-9A-Za-z.)}\]]$")


class Quantity(NamedTuple):
    """A text without its unit."""

    value: str
    unit: str | None
    """None where there is none; else a name that is the same for every way to write the unit."""


def split_unit(text: str) -> Quantity:
    r"""`34\text{ cm}^2` -> (`34`, `cm^2`); a magnitude word is part of the value (`3 million` -> `3\cdot 10^{6}`)."""
    text = text.strip()
    if base := _BASE.match(text):
        return Quantity(base["digits"], f"base {base['long'] or base['short']}")
    if _TRIGONOMETRIC.search(text):  # the degrees are the function's
        return Quantity(text, None)
    for pattern, unit in ((_TEMPERATURE, None), (_DEGREE_SIGN, DEGREE), (_PERCENT_SIGN, PERCENT), (_PRIMES, "prime")):
        if (match := pattern.search(text)) and _VALUE_END.search(text[: match.start()].rstrip()):
            return Quantity(text[: match.start()].rstrip(), unit or f"degree {match['scale']}")
    bare = _DOLLAR_SIGN.sub("", text)
    value, unit = _split_words(bare)
    if bare != text and unit in (None, "dollar"):
        return Quantity(value, "dollar")
    return Quantity(value, unit) if bare == text else Quantity(text, None)


def _split_words(text: str) -> Quantity:
    tail = max(0, len(text) - 120)  # a unit is short; the pattern is not tried at every place of a long text
    match = _WORDS.search(text, tail)
    value = text[: match.start()].rstrip() if match else ""
    if match is None or not _VALUE_END.search(value) or not re.search(r"[0-9]|\\pi", value):
        return Quantity(text, None)
    found = next(filter(None, (match[name] for name in ("text", "bracketed", "plain", "chinese"))), "")
    words = found.lower().strip(" ().").replace(".", " ").split()
    if words and words[0] in POWERS_OF_TEN:
        value, words = rf"{value}\cdot 10^{{{POWERS_OF_TEN[words[0]]}}}", words[1:]
        if not words:
            return Quantity(value, None)
    unit = _canonical(words, match["power"]) if words else None
    return Quantity(text, None) if unit is None else Quantity(value, unit)


def _canonical(words: list[str], power: str | None) -> str | None:
    """One name for every way to write a unit; None: it is not one of `pyrl.reward.unit_names`."""
    named = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}
    if words[0] in named and len(words) > 1:
        power, words = named[words[0]], words[1:]
    if words[-1] in ("squared", "cubed") and len(words) > 1:
        power, words = {"squared": "2", "cubed": "3"}[words[-1]], words[:-1]
    text = " ".join(words)
    names = [_singular(part.strip()) for part in PHRASES.get(text, text).replace(" per ", "/").split("/")]
    if None in names:
        return None
    name = "/".join(filter(None, names))
    return name if power in (None, "1") else f"{name}^{power}"


def _singular(name: str) -> str | None:
    stem = name[:-1] if name.endswith("s") and len(name) > 2 else name
    if unit := CANONICAL.get(name) or CANONICAL.get(stem):
        return unit
    return stem if name in _PHRASE_UNITS or name in COUNTED or stem in COUNTED else None
