"""Ground truths that a task's grader cannot read: every answer to such a question would be unjudged."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from pyrl.config import ConfigError
from pyrl.reward.answers import as_integer
from pyrl.reward.pool import RewardPool
from pyrl.reward.tasks import UNREADABLE_GROUND_TRUTH
from pyrl.types import Prompt

SECONDS = 20.0
CHUNK = 16
"""Truths between two looks at the clock: each may take as long as a grading may."""
UNDECIDED = r"\boxed{\sqrt{7919}+q}"
"""An answer in mathematics that text does not decide, so the ground truth is read."""


def check_truths(pool: RewardPool, files: Sequence[tuple[Path, Sequence[Prompt]]]) -> None:
    """Raises ConfigError for a ground truth of a file's prompts that the pool's grader cannot read. `SECONDS` are for
    all files together."""
    deadline = time.monotonic() + SECONDS
    for path, prompts in files:
        truths = (prompt.ground_truth for prompt in prompts)
        bad = unreadable_truths(pool, truths, seconds=deadline - time.monotonic())
        if questions := [prompt for prompt in prompts if prompt.ground_truth in bad]:
            first = questions[0]
            raise ConfigError(
                f"{path}: reward.task {pool.task} cannot read the ground truth of {len(questions)} of {len(prompts)} "
                f"questions, the first that of {first.id}, {first.ground_truth[:120]!r} "
                f"({bad[first.ground_truth][:120]}). Correct or remove them, choose the task that they are of, or say "
                "in data.columns.extractor how the answer stands in a solution"
            )


def unreadable_truths(pool: RewardPool, truths: Iterable[str], *, seconds: float = SECONDS) -> dict[str, str]:
    """Ground truth -> why the pool's grader cannot read it. In mathematics integers can be read; the others are tried
    by the pool, as many as `seconds` allow: the rest is found out when it is first used."""
    mathematics = pool.task.partition(":")[0] == "math"
    asked = [truth for truth in dict.fromkeys(truths) if not (mathematics and as_integer(truth) is not None)]
    deadline = time.monotonic() + seconds
    found: dict[str, str] = {}
    for start in range(0, len(asked), CHUNK):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        chunk = asked[start : start + CHUNK]
        items = [(UNDECIDED if mathematics else "", truth) for truth in chunk]
        verdicts = pool.grade(items, timeout_seconds=min(left, pool.timeout_seconds))
        reasons = {truth: verdict.reason for truth, verdict in zip(chunk, verdicts, strict=True)}
        found |= {t: reason for t, reason in reasons.items() if reason.partition(":")[0] == UNREADABLE_GROUND_TRUTH}
    return found
