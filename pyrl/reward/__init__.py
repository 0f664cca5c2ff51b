"""Grading of responses: `grade_math` and `grade_code` for one answer, `RewardPool` for a step's worth of any task.

Names are resolved on first use: a grader process imports this package and must not pay for torch, which `Verdict`'s
module needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrl.reward.code import grade_code
    from pyrl.reward.math import grade_math
    from pyrl.reward.pool import RewardPool
    from pyrl.reward.tasks import grader_version
    from pyrl.types import Verdict

__all__ = ["RewardPool", "Verdict", "grade_code", "grade_math", "grader_version"]

_HOMES = {
    "RewardPool": "pyrl.reward.pool",
    "Verdict": "pyrl.types",
    "grade_code": "pyrl.reward.code",
    "grade_math": "pyrl.reward.math",
    "grader_version": "pyrl.reward.tasks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
