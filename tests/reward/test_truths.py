"""Ground truths that cannot be read are found before a question is asked."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pyrl.config import ConfigError
from pyrl.reward import RewardPool
from pyrl.reward.truths import check_truths, unreadable_truths
from pyrl.types import Prompt, Verdict

HERE = Path(__file__).parent
READABLE = ["24", "-3", r"\frac{1}{2}", r"\text{(C) }5", "[1, 2)", "x = 5", "east", "2.5", r"\{1, 2\}", "1,234"]


@pytest.fixture(scope="module")
def pool():
    with RewardPool("math", 1, 5.0) as pool:
        yield pool


def prompts(truths: list[str]) -> list[Prompt]:
    return [Prompt(f"sums/{i}", (1,), truth, "sums") for i, truth in enumerate(truths)]


def test_what_can_be_read_passes(pool: RewardPool) -> None:
    assert unreadable_truths(pool, READABLE) == {}
    check_truths(pool, [(Path("data.jsonl"), prompts(READABLE))])


def test_a_worked_solution_in_place_of_an_answer_is_named(pool: RewardPool) -> None:
    """GSM8K's column as it is: every answer to it would be unjudged."""
    rows = [json.loads(line) for line in (HERE / "gsm8k_columns.jsonl").read_text().splitlines()]
    solutions = [row["answer"] for row in rows]
    assert set(unreadable_truths(pool, READABLE + solutions)) == set(solutions)
    with pytest.raises(ConfigError) as caught:
        check_truths(pool, [(Path("a"), prompts(READABLE)), (Path("gsm8k.jsonl"), prompts([*READABLE, *solutions]))])
    said = str(caught.value)
    assert said.startswith(f"gsm8k.jsonl: reward.task math cannot read the ground truth of 3 of {len(READABLE) + 3}")
    assert f"the first that of sums/{len(READABLE)}, '3 rows with 8 books" in said and "data.columns.extractor" in said


@pytest.mark.parametrize(("task", "bad"), [("countdown", "24"), ("ring_walk", "x"), ("code", "def f(): pass")])
def test_other_tasks_read_theirs_too(task: str, bad: str) -> None:
    with RewardPool(task, 1, 12.0) as pool:
        assert list(unreadable_truths(pool, [bad])) == [bad]


def test_integers_cost_nothing_and_the_others_a_limited_time(pool: RewardPool) -> None:
    started = time.monotonic()
    assert unreadable_truths(pool, (str(i) for i in range(100_000)), seconds=0.0) == {}
    assert time.monotonic() - started < 5.0
    assert unreadable_truths(pool, ["("], seconds=0.0) == {}
    assert set(unreadable_truths(pool, ["("], seconds=20.0)) == {"("}


def test_the_time_holds_where_every_truth_takes_as_long_as_it_may() -> None:
    """And one that only takes long is none that cannot be read."""

    class Slow:
        task, timeout_seconds = "math", 5.0
        asked = 0

        def grade(self, items: list[tuple[str, str]], *, timeout_seconds: float) -> list[Verdict]:
            self.asked += len(items)
            time.sleep(0.01 * len(items))
            return [Verdict("unjudged", "timeout: 0.01 s") for _ in items]

    slow = Slow()
    assert unreadable_truths(slow, [f"\\sqrt{{{i}}}" for i in range(1000)], seconds=0.5) == {}
    assert 16 <= slow.asked <= 80
