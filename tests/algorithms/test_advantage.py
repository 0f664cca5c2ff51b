import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrl.algorithms.advantage import ADVANTAGES, grpo


@given(st.lists(st.sampled_from([0.0, 1.0, 0.5, None]), max_size=12))
@settings(deadline=None)
def test_grpo_equals_numpy_over_the_judged(rewards):
    found = grpo(rewards)
    assert [a is None for a in found] == [r is None for r in rewards]
    judged = np.array([r for r in rewards if r is not None])
    if len(judged) >= 2 and judged.min() < judged.max():
        expected = (judged - judged.mean()) / (judged.std(ddof=1) + 1e-6)
    else:
        expected = np.zeros(len(judged))
    assert [a for a in found if a is not None] == pytest.approx(expected.tolist(), rel=1e-12, abs=1e-12)


def test_one_of_eight_right():
    """The arithmetic of a group of 8: mean 1/8, std sqrt(1/8) = 0.3536; the hit gets 2.4749, a miss -0.3536."""
    found = grpo([1.0] + [0.0] * 7)
    assert found[0] == pytest.approx(0.875 / (0.125**0.5 + 1e-6)) and found[1] == pytest.approx(-0.125 / 0.3535544)


def test_an_unjudged_completion_changes_nothing_for_the_others():
    assert grpo([1.0, None, 0.0, 0.0]) == [grpo([1.0, 0.0, 0.0])[0], None, *grpo([1.0, 0.0, 0.0])[1:]]


@pytest.mark.parametrize("rewards", [[], [None, None], [1.0, None], [0.1] * 3, [1.0] * 8])
def test_nothing_to_learn_from_is_zero(rewards):
    assert grpo(rewards) == [None if r is None else 0.0 for r in rewards]


def test_registry():
    assert ADVANTAGES["grpo"] is grpo
