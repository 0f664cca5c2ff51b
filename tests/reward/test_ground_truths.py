"""Ground truths of the real files: each can be read, and for MATH-500 means itself and nothing else."""

import os
import random
import re
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from pyrl.reward import RewardPool

FILES = {"DAPO-Math-17k": 17_398, "aime24": 960, "aime25": 960, "amc23": 1280, "math500": 500}

pytestmark = pytest.mark.skipif("PYRL_DATA_DIR" not in os.environ, reason="PYRL_DATA_DIR is not set")


@pytest.fixture(scope="module")
def pool():
    with RewardPool("math", 1, 30.0) as pool:
        yield pool


def truths_of(name):
    table = parquet.read_table(Path(os.environ["PYRL_DATA_DIR"]) / f"{name}.parquet", columns=["reward_model"])
    return [row["ground_truth"] for row in table["reward_model"].to_pylist()]


def judged_unlike(pool, outcome, pairs):
    verdicts = pool.grade([(rf"We get \boxed{{{answer}}}.", truth) for answer, truth in pairs])
    return [(pair, v) for pair, v in zip(pairs, verdicts, strict=True) if v.outcome != outcome]


@pytest.mark.parametrize("name", FILES)
def test_every_ground_truth_is_its_own_answer_and_can_be_read(pool, name):
    truths = truths_of(name)
    assert len(truths) == FILES[name]
    distinct = sorted(set(truths))  # equal rows get equal verdicts
    assert judged_unlike(pool, "right", [(truth, truth) for truth in distinct]) == []
    other = r"\frac{355}{113}"  # text does not decide: the ground truth itself must be read
    assert judged_unlike(pool, "wrong", [(other, truth) for truth in distinct if not truth.lstrip("-").isdigit()]) == []


def rewritings(truth):
    spaced = re.sub(r"([,+=&])", r"\\, \1 \\;", truth).replace(r"\frac", r"\dfrac")
    yield rf"\displaystyle {spaced}"
    if is_expression(truth):
        yield rf"\frac{{2\left({truth}\right)}}{{2}}"


def is_expression(truth):
    """A number or a term: no list, interval, equation, matrix, word, choice, subscript."""
    words = r"^\(?[A-Z]\)?$|(?<!\\)[A-Za-z]{4,}|\\cotx"
    return not re.search(rf"[,=_&]|\\(?:in|cup|pm|begin)|[0-9]\\frac|{words}", truth)


def test_rewritings_of_math500_are_right(pool):
    truths = sorted(set(truths_of("math500")))
    assert judged_unlike(pool, "right", [(answer, truth) for truth in truths for answer in rewritings(truth)]) == []
    prose = [(f"So x is 17, hence 3 of them.\n\\boxed{{1}}, no:\n$$\\boxed{{ {t} }}$$ as asked.", t) for t in truths]
    assert {v.outcome for v in pool.grade(prose)} == {"right"}


def test_other_ground_truths_of_math500_are_wrong(pool):
    truths = sorted(set(truths_of("math500")))
    draw = random.Random(0)
    equal = {frozenset(pair) for pair in [(r"\frac{1}{2}", "0.5")]}
    pairs = [(other, truth) for truth in truths for other in draw.sample(truths, 5) if other != truth]
    assert judged_unlike(pool, "wrong", [pair for pair in pairs if frozenset(pair) not in equal]) == []
