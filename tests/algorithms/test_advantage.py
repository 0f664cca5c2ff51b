from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrl.algorithms.advantage import ADVANTAGES, dr_grpo, grpo, rloo
from pyrl.config import AlgorithmConfig


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


def test_dr_grpo_and_rloo_of_a_group_by_hand():
    """Mean 0.25: 0.75 and -0.25. Each against the mean of the other three: 1 - 0 and 0 - 1/3."""
    assert dr_grpo([1.0, 0.0, None, 0.0, 0.0]) == [0.75, -0.25, None, -0.25, -0.25]
    assert rloo([1.0, 0.0, 0.0, 0.0]) == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3], rel=1e-15)
    assert rloo([1.0, None, 0.0]) == [1.0, None, -1.0]


@pytest.mark.parametrize("estimate", [dr_grpo, rloo])
@pytest.mark.parametrize("rewards", [[], [None, None], [1.0, None], [0.1] * 3, [1.0] * 8])
def test_a_group_without_a_difference_has_no_advantage(estimate, rewards):
    assert estimate(rewards) == [None if r is None else 0.0 for r in rewards]


def test_reinforce_plus_plus_by_hand():
    """Tokens: 1 1 | 0 0 0 0 | 1 1, mean 1/2, variance 8 (1/4) / 7 = 2/7. A response counts as its tokens."""
    found = ADVANTAGES["reinforce_plus_plus"]([[1.0, 0.0], [None, 1.0]], [[2, 4], [9, 2]])
    scale = 0.5 / (2 / 7 + 1e-8) ** 0.5
    assert found == [pytest.approx([scale, -scale]), [None, pytest.approx(scale)]]


def test_reinforce_plus_plus_baseline_by_hand():
    """Less their group's mean: 1/2, -1/2 of 1 and 3 tokens; a group of equals: 0, 0 of 2 and 2. Mean -1/8, and the
    squares (25/64, 3 (9/64), 4 / 64) add up to 56/64; over 7: 1/8."""
    found = ADVANTAGES["reinforce_plus_plus_baseline"]([[1.0, 0.0], [1.0, 1.0]], [[1, 3], [2, 2]])
    scale = (1 / 8 + 1e-8) ** -0.5
    assert found[0] == pytest.approx([5 / 8 * scale, -3 / 8 * scale])
    assert found[1] == pytest.approx([1 / 8 * scale] * 2)


COMPLETION = st.tuples(st.sampled_from([0.0, 0.3, 1.0, None]), st.integers(1, 50))


@given(st.lists(st.lists(COMPLETION, max_size=5), max_size=6))
@settings(deadline=None)
def test_whitened_tokens_have_mean_0_and_variance_1_in_any_order(groups):
    rewards, lengths = [[r for r, _ in g] for g in groups], [[n for _, n in g] for g in groups]
    for name in ("reinforce_plus_plus", "reinforce_plus_plus_baseline"):
        found = ADVANTAGES[name](rewards, lengths)
        assert ADVANTAGES[name](rewards[::-1], lengths[::-1]) == found[::-1]  # to the bit
        values = [a for group in found for a in group]
        assert [a is None for a in values] == [r is None for group in rewards for r in group]
        judged = [n for group in groups for r, n in group if r is not None]
        tokens = np.repeat([a for a in values if a is not None], judged)
        if np.any(tokens):
            assert tokens.mean() == pytest.approx(0, abs=1e-9) and tokens.var(ddof=1) == pytest.approx(1, abs=1e-4)


def test_every_configured_estimator_is_registered():
    names = get_args(AlgorithmConfig.model_fields["advantage"].annotation)
    assert ADVANTAGES.keys() == set(names)
    groups = [[1.0, 0.0, 0.0], [0.0, None, 1.0]]
    assert ADVANTAGES["grpo"](groups, [[5, 6, 7]] * 2) == [grpo(group) for group in groups]
