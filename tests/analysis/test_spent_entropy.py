"""The notice speaks on a curve of the law and is silent where the law does not hold."""

import re

import numpy as np
import pytest

from pyrl.analysis.entropy_law import fit_entropy_law
from pyrl.analysis.spent_entropy import spent_entropy_notice
from tests.analysis.curves import NOISE, ar1, entropy_curve, law_curve

N = 200


def notice(entropy, reward) -> str | None:
    return spent_entropy_notice(range(1, len(reward) + 1), entropy, reward)


def test_it_gives_the_ceiling_with_its_interval_and_no_forecast() -> None:
    entropy, reward = law_curve(N, np.random.default_rng(0))
    said = notice(entropy, reward)
    low, high = fit_entropy_law(entropy, reward).interval("ceiling")
    assert said.startswith(f"step {N}: by the law") and f"interval {low:.3g} to {high:.3g})" in said
    spent = int(re.search(r"(\d+)% of the entropy is spent", said)[1])
    start, now = np.exp(entropy[:5]).mean(), np.exp(entropy[-5:]).mean()
    assert spent == pytest.approx(100 * (start - now) / (start - 1), abs=0.5)
    assert "unlikely" not in said and "gain" not in said


def test_it_speaks_on_most_curves_of_the_law() -> None:
    rng = np.random.default_rng(1)
    assert sum(notice(*law_curve(N, rng)) is not None for _ in range(20)) >= 18


@pytest.mark.parametrize(
    "reward",
    [
        lambda h, t: 0.2 + 0.4 * t,
        lambda h, t: 0.2 + 0.1 * np.log(1 + 200 * t),
        lambda h, t: 0.9 - 0.5 * h - 0.1 * (np.exp(h) - 1.5) ** 2 + 0.1 * t,
        lambda h, t: 0.3 - 0.1 * np.log(h),
        lambda h, t: 0.8 - 0.3 * np.exp(h) + 0.25 * t,
    ],
    ids=["line in time", "log of time", "bent and rising", "log H", "the law and a rise in time"],
)
def test_it_is_silent_where_reward_goes_on_past_the_ceiling(reward) -> None:
    """The kinds of curve on which runs ended above the ceiling: other forms, and the law with a rise beside it."""
    rng = np.random.default_rng(2)
    for _ in range(5):
        entropy = entropy_curve(N, rng)
        assert notice(entropy, reward(entropy, np.arange(N) / N) + NOISE * ar1(N, 0.0, rng)) is None


def test_it_is_silent_while_entropy_is_left_or_the_ceiling_unknown() -> None:
    rng = np.random.default_rng(3)
    entropy, reward = law_curve(N, rng)
    assert notice(entropy[:40], reward[:40]) is None  # two thirds spent
    few = entropy_curve(25, rng)
    assert notice(few, 0.8 - 0.3 * np.exp(few) + 0.06 * rng.standard_normal(25)) is None
