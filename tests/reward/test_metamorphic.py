"""Ground truths of the real files, rewritten so that they stay equal and altered so that they do not."""

import os

import pytest

from pyrl.reward import RewardPool
from tests.reward.metamorphic import TIMEOUT_SECONDS, alterations, judge, pairs_of, rewritings

ROUNDED = [(r"\left(.0000672\right) + 10^{-20}", ".0000672", "right")]
"""A decimal of six places or more stands for what rounds to it."""
SAMPLE = ["42", "-7", r"\frac{3}{4}", r"2\sqrt{3}", r"\frac{\pi}{6}", "0.15"]


@pytest.fixture(scope="module")
def pool():
    with RewardPool("math", 1, TIMEOUT_SECONDS) as pool:
        yield pool


@pytest.mark.parametrize("truth", SAMPLE)
def test_a_sample(pool, truth):
    equal, other = ([(answer, truth) for answer in make(truth)] for make in (rewritings, alterations))
    assert len(equal) >= 3 and len(other) >= 2
    assert judge(pool, equal, "right") == []
    assert [found for found in judge(pool, other, "wrong") if found not in ROUNDED] == []


@pytest.mark.skipif("PYRL_DATA_DIR" not in os.environ, reason="PYRL_DATA_DIR is not set")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["aime24", "aime25", "amc23", "math500"])
def test_the_truths_of_the_real_files(pool, name):
    equal, other = pairs_of(name)
    assert min(len(equal), len(other)) >= 300
    assert judge(pool, equal, "right") == []
    assert [found for found in judge(pool, other, "wrong") if found not in ROUNDED] == []
