"""The answer within a column that holds a worked solution, by `data.columns.extractor`."""

from __future__ import annotations

import re
from collections.abc import Callable

from pyrl.reward.answers import last_boxed

_GSM8K = re.compile(r"####\s*(\S.*?)\s*\Z", re.DOTALL)


def gsm8k(text: str) -> str | None:
    """What follows the last `####`, thousands separators removed (arXiv 2110.14168); None without it."""
    found = _GSM8K.search(text[text.rfind("####") :]) if "####" in text else None
    return re.sub(r"(?<=\d),(?=\d{3})", "", found[1]) if found else None


def boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{}`, as in the MATH set's solutions (arXiv 2103.03874); None without it."""
    return last_boxed(text) or None


EXTRACTORS: dict[str, Callable[[str], str | None]] = {"gsm8k": gsm8k, "boxed": boxed}
"""Text of a column -> the answer in it, or None where it has none."""
