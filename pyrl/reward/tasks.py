"""What a grader is, and which tasks have one. Standard library only: grader processes import this first."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

RawVerdict = tuple[str, str, str | None]
"""(outcome, reason, extracted): the fields of `pyrl.types.Verdict`, without its import of torch. A reason is a code
from below, followed by `: detail` where there is more to say."""

Grader = Callable[[str, str], RawVerdict]
"""grade(response, ground_truth). What it raises is reported as unjudged."""

EQUAL = "equal"
DIFFERENT = "different"
NO_ANSWER = "no_answer"
UNREADABLE_ANSWER = "unreadable_answer"
OVER_LIMIT = "over_limit"
UNREADABLE_GROUND_TRUTH = "unreadable_ground_truth"
TIMEOUT = "timeout"
CRASH = "crash"

LOADERS = {
    "countdown": "pyrl.reward.countdown:load_grader",
    "math": "pyrl.reward.math:load_grader",
    "reasoning_gym": "pyrl.reward.reasoning_gym:load_grader",
}
"""Task (the part before a colon) -> `module:function`; the function gets the part after the colon ("" if there is
none) and returns a `Grader`."""


class UnknownTaskError(LookupError):
    """No grader goes by that name; the text lists those that do."""


def split_task(task: str) -> tuple[str, str]:
    """`family:variant` -> (loader, variant). Raises UnknownTaskError."""
    family, colon, variant = task.partition(":")
    takes_variant = family == "reasoning_gym"
    if family not in LOADERS or takes_variant != bool(variant) or (colon and not variant):
        known = ", ".join(repr(f"{name}:NAME" if name == "reasoning_gym" else name) for name in sorted(LOADERS))
        raise UnknownTaskError(f"reward.task {task!r} is unknown; known tasks: {known}")
    return LOADERS[family], variant


def load_grader(loader: str, variant: str) -> Grader:
    """Import `module:function` and make the grader. Raises UnknownTaskError for an unknown variant."""
    module, _, function = loader.partition(":")
    return getattr(import_module(module), function)(variant)
