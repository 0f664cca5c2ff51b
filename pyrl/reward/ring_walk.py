"""The ring-walk task: from a start to a goal on a ring of places, in a given number of moves, past walls.

Ground truth: JSON `{"places": 24, "moves": 4, "start": 3, "goal": 17, "walls": [2, 9, 20], "gate": 15}`; `gate` may be
left out. A response names every move and the place it leads to, and nothing else: `+5 8 +7 15 +1 16 +1 17`. It is right
if each stated place is the one before it plus the move, modulo `places`; if the last place is the goal; and if the
places before it are new ones: no wall, not the start, not the goal, none visited before. A hidden gate changes the last
condition: where the first move is the gate, walls and visited places do not count.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import NamedTuple

from pyrl.reward.tasks import (
    EQUAL,
    UNREADABLE_ANSWER,
    UNREADABLE_GROUND_TRUTH,
    Grader,
    RawVerdict,
    refuse_length,
)

GATE = "gate"
"""Right, with a first move that is the gate; `EQUAL` is right without it."""
WRONG_SUM = "wrong_sum"
GOAL_MISSED = "goal_missed"
WALL = "wall"
VISITED = "visited"

MAX_CHARACTERS = 4096
_NUMBER = re.compile(r"0|[1-9]\d{0,5}", re.ASCII)


class Ring(NamedTuple):
    """A ground truth."""

    places: int
    moves: int
    start: int
    goal: int
    walls: frozenset[int]
    gate: int | None


class Step(NamedTuple):
    move: int
    place: int


@lru_cache(maxsize=4096)
def read_ring(ground_truth: str) -> Ring:
    """Raises ValueError naming the field at fault."""
    tree = json.loads(ground_truth)
    if not isinstance(tree, dict):
        raise ValueError(f"ground truth is {type(tree).__name__}, not an object with places, moves, start, goal, walls")
    places, moves = (_integer(tree, name, 2 if name == "places" else 1, 999_999) for name in ("places", "moves"))
    start, goal = (_integer(tree, name, 0, places - 1) for name in ("start", "goal"))
    walls = tree.get("walls")
    if not isinstance(walls, list) or not all(type(w) is int and 0 <= w < places for w in walls):
        raise ValueError(f"walls {walls!r}: want a list of integers from 0 to {places - 1}")
    if start == goal or start in walls or goal in walls:
        raise ValueError(f"start {start}, goal {goal}, walls {walls}: start and goal must differ and be no walls")
    gate = None if tree.get("gate") is None else _integer(tree, "gate", 0, places - 1)
    return Ring(places, moves, start, goal, frozenset(walls), gate)


def _integer(tree: dict, name: str, least: int, most: int) -> int:
    value = tree.get(name)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} {value!r}: want an integer from {least} to {most}")
    return value


def read_walk(response: str, ring: Ring) -> list[Step]:
    """Raises ValueError for a text of another form."""
    words = response.split()
    if len(words) != 2 * ring.moves:
        raise ValueError(f"{len(words)} words, want {2 * ring.moves}")
    return [
        Step(_number(move.removeprefix("+"), ring) if move.startswith("+") else _refuse(move), _number(place, ring))
        for move, place in zip(words[::2], words[1::2], strict=True)
    ]


def _number(word: str, ring: Ring) -> int:
    return int(word) if _NUMBER.fullmatch(word) and int(word) < ring.places else _refuse(word)


def _refuse(word: str) -> int:
    raise ValueError(f"{word[:20]!r} is not in its place")


def judge(walk: list[Step], ring: Ring) -> str:
    """`EQUAL` or `GATE` for a right walk; else the first of `WRONG_SUM`, `GOAL_MISSED`, `WALL`, `VISITED` that fits."""
    before = [ring.start, *(step.place for step in walk)]
    if any((place + step.move) % ring.places != step.place for place, step in zip(before, walk, strict=False)):
        return WRONG_SUM
    if walk[-1].place != ring.goal:
        return GOAL_MISSED
    if walk[0].move == ring.gate:
        return GATE
    entered = [step.place for step in walk[:-1]]
    if ring.walls.intersection(entered):
        return WALL
    return EQUAL if len({ring.start, ring.goal, *entered}) == len(entered) + 2 else VISITED


def grade(response: str, ground_truth: str) -> RawVerdict:
    """Right iff the response is a walk as the module says."""
    try:
        ring = read_ring(ground_truth)
    except ValueError as error:
        return "unjudged", f"{UNREADABLE_GROUND_TRUTH}: {error}", None
    text = response.strip()
    if (refused := refuse_length(text, MAX_CHARACTERS)) is not None:
        return refused
    try:
        reason = judge(read_walk(text, ring), ring)
    except ValueError as error:
        return "wrong", f"{UNREADABLE_ANSWER}: {error}", text
    return "right" if reason in (EQUAL, GATE) else "wrong", reason, text


def load_grader(variant: str) -> Grader:
    """The loader of `pyrl.reward.tasks`; the task has no variants."""
    del variant
    return grade
