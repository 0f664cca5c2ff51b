from __future__ import annotations

import pytest

from pyrl.rollout.filters import keep_informative
from pyrl.types import Completion, Prompt, RolloutGroup, Verdict

OUTCOMES = {"+": "right", "-": "wrong", "?": "unjudged"}


def group(name: str, outcomes: str, *, graded: bool = True) -> RolloutGroup:
    completions = [Completion((1,), (-0.1,), "stop", ())] * len(outcomes)
    verdicts = [Verdict(OUTCOMES[o], "") for o in outcomes] if graded else []
    return RolloutGroup(Prompt(name, (1,), "", "test"), completions, verdicts)


@pytest.mark.parametrize(
    ("outcomes", "informative"),
    [("+-", True), ("--+-", True), ("++", False), ("--", False), ("+?", False), ("+?-", True), ("??", False),
     ("?", False), ("+", False)],
)  # fmt: skip
def test_groups_of_equal_rewards_are_dropped(outcomes: str, informative: bool) -> None:
    one = group("p", outcomes)
    assert keep_informative([one]) == (([one], []) if informative else ([], [one]))


def test_order_is_kept() -> None:
    groups = [group("a", "+-"), group("b", "++"), group("c", "-+"), group("d", "--")]
    kept, dropped = keep_informative(groups)
    assert [g.prompt.id for g in kept] == ["a", "c"] and [g.prompt.id for g in dropped] == ["b", "d"]


def test_an_ungraded_group_is_an_error() -> None:
    with pytest.raises(ValueError, match="'p' has 0 verdicts for 2 completions"):
        keep_informative([group("p", "+-", graded=False)])
