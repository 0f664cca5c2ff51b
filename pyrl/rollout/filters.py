"""Dynamic sampling: groups that carry no learning signal are dropped."""

from __future__ import annotations

from pyrl.types import RolloutGroup


def keep_informative(groups: list[RolloutGroup]) -> tuple[list[RolloutGroup], list[RolloutGroup]]:
    """Split into (kept, dropped), order preserved.

    A group whose judged rewards are all equal (all right, all wrong, or fewer than two judged) has advantage 0 for
    every token; completions that could not be judged have no reward and do not count. Raises ValueError for a group
    that was not graded.
    """
    kept: list[RolloutGroup] = []
    dropped: list[RolloutGroup] = []
    for group in groups:
        if len(group.verdicts) != len(group.completions):
            raise ValueError(
                f"group of prompt {group.prompt.id!r} has {len(group.verdicts)} verdicts for "
                f"{len(group.completions)} completions: grade it before filtering"
            )
        judged = {reward for reward in group.rewards if reward is not None}
        (kept if len(judged) > 1 else dropped).append(group)
    return kept, dropped
