"""The ring-walk grader: every way to be wrong by name, and a second judge over all answers of small rings."""

from __future__ import annotations

import itertools
import json
import math
import re

import pytest

from pyrl.reward.ring_walk import grade
from pyrl.reward.tasks import split_task

RING = {"places": 24, "moves": 4, "start": 3, "goal": 17, "walls": [2, 9, 20], "gate": 15}


def truth(**changes: object) -> str:
    return json.dumps(RING | changes)


@pytest.mark.parametrize(
    ("response", "outcome", "reason"),
    [
        ("+5 8 +7 15 +1 16 +1 17", "right", "equal"),
        ("  +5 8\n+7 15 +1 16 +1 17 ", "right", "equal"),
        ("+23 2 +1 3 +1 4 +13 17", "wrong", "wall"),
        ("+15 18 +2 20 +2 22 +19 17", "right", "gate"),  # through a wall
        ("+15 18 +0 18 +9 3 +14 17", "right", "gate"),  # a place twice, and the start
        ("+5 8 +2 10 +22 8 +9 17", "wrong", "visited"),
        ("+5 8 +19 3 +1 4 +13 17", "wrong", "visited"),  # the start
        ("+14 17 +1 18 +1 19 +22 17", "wrong", "visited"),  # the goal before the end
        ("+0 3 +5 8 +1 10 +7 17", "wrong", "wrong_sum"),
        ("+0 3 +5 8 +2 10 +7 17", "wrong", "visited"),
        ("+5 8 +7 15 +1 16 +2 18", "wrong", "goal_missed"),
        ("+15 18 +7 1 +1 2 +1 3", "wrong", "goal_missed"),
        ("+15 18 +7 1 +15 16 +2 17", "wrong", "wrong_sum"),
        ("+5 8 +2 9 +1 10 +8 18", "wrong", "wrong_sum"),  # the first fault counts
        ("", "wrong", "no_answer"),
        ("+5 8 +7 15 +2 17", "wrong", "unreadable_answer: 6 words, want 8"),
        ("+5 8 +7 15 +1 16 +1 17 17", "wrong", "unreadable_answer: 9 words, want 8"),
        ("5 8 +7 15 +1 16 +1 17", "wrong", "unreadable_answer: '5' is not in its place"),
        ("+5 8 +7 +15 +1 16 +1 17", "wrong", "unreadable_answer: '+15' is not in its place"),
        ("+29 8 +7 15 +1 16 +1 17", "wrong", "unreadable_answer: '29' is not in its place"),
        ("+05 8 +7 15 +1 16 +1 17", "wrong", "unreadable_answer: '05' is not in its place"),
        ("++5 8 +7 15 +1 16 +1 17", "wrong", "unreadable_answer: '+5' is not in its place"),
        ("+5 ٨ +7 15 +1 16 +1 17", "wrong", "unreadable_answer: '٨' is not in its place"),
        ("1" * 5000, "wrong", "over_limit: 5000 characters, at most 4096"),
    ],
)
def test_reasons(response: str, outcome: str, reason: str) -> None:
    assert grade(response, truth())[:2] == (outcome, reason)


@pytest.mark.parametrize("gate", [None, 3])
def test_against_every_answer_of_a_small_ring(gate: int | None) -> None:
    """A judge written the other way round: it builds the right answers instead of checking one."""
    places, moves, start, goal, wall = 6, 3, 1, 4, 2
    ground_truth = truth(places=places, moves=moves, start=start, goal=goal, walls=[wall], gate=gate)
    free = [p for p in range(places) if p not in (start, goal, wall)]
    right = set(itertools.permutations(free, moves - 1))
    if gate is not None:
        right |= {((start + gate) % places, anywhere) for anywhere in range(places)}
    walks = set()
    for between in right:
        path = [start, *between, goal]
        walks.add(" ".join(f"+{(b - a) % places} {b}" for a, b in itertools.pairwise(path)))
    words = [f"+{m} {p}" for m in range(places) for p in range(places)]
    answers = map(" ".join, itertools.product(words, repeat=moves))
    judged = {text for text in answers if grade(text, ground_truth)[0] == "right"}
    assert judged == walks and len(walks) == (math.perm(3, 2) if gate is None else 12)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"places": 1}, "places 1: want an integer from 2"),
        ({"places": True}, "places True"),
        ({"moves": 0}, "moves 0: want an integer from 1"),
        ({"start": 24}, "start 24: want an integer from 0 to 23"),
        ({"goal": "17"}, "goal '17'"),
        ({"walls": [24]}, r"walls \[24\]: want a list of integers from 0 to 23"),
        ({"walls": 3}, "walls 3"),
        ({"walls": [3]}, "start and goal must differ and be no walls"),
        ({"goal": 3}, "start and goal must differ"),
        ({"gate": 24}, "gate 24"),
    ],
)
def test_a_ground_truth_at_fault_is_unjudged_by_field(changes: dict, said: str) -> None:
    outcome, reason, _ = grade("+5 8 +7 15 +1 16 +1 17", truth(**changes))
    assert outcome == "unjudged" and reason.startswith("unreadable_ground_truth: ")
    assert re.search(said, reason)


@pytest.mark.parametrize("text", ["[]", "{", "7", '"a"', "null"])
def test_no_object_is_unjudged(text: str) -> None:
    assert grade("+5 8", text)[0] == "unjudged"


def test_it_is_a_task_without_variants() -> None:
    assert split_task("ring_walk") == ("pyrl.reward.ring_walk:load_grader", "")
