"""The labelled answers of this folder; README.md holds their rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class Labelled(NamedTuple):
    """One labelled pair."""

    category: str
    response: str
    truth: str
    label: str
    """right or wrong."""


def read_labelled() -> list[Labelled]:
    """All pairs, categories in alphabetical order."""
    return [
        Labelled(path.stem, _response(row), row["truth"], row["label"])
        for path in sorted(Path(__file__).parent.glob("*.jsonl"))
        for row in map(json.loads, path.read_text().splitlines())
    ]


def _response(row: dict) -> str:
    if "parts" in row:
        return "".join(text * times for text, times in row["parts"])
    return row["response"] if "response" in row else rf"Thus \boxed{{{row['answer']}}}."
