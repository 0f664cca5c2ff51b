"""Ten thousand gradings, with hanging answers and killed workers among them, leave nothing behind."""

from __future__ import annotations

import gc
import os
import random
import re
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from benchmarks.grading import Item, equal_items, other_form_items
from pyrl.reward import RewardPool, Verdict
from tests.own_process import OwnProcess

pytestmark = pytest.mark.slow

CALLS, WARM_CALLS = 10, 2
EQUAL, OTHER_NUMBER, OTHER_FORM = 900, 40, 60
"""Items of a call; the last half right, half wrong, and none of them decided by its text. Those are the same in every
call: sympy's caches take 3 MB for the first 6,000 distinct ones (then they are full), which would hide a leak."""
HANG = (r"\boxed{\int_0^1 e^{-x^2}\sin(x^3) dx}", "34")
HANG_LIMIT = 0.3

# From the 2,000th to the 10,000th grading. An object kept of every grading is 8,000 blocks of the parent, and a pair of
# texts kept by the worker, which does at least half of them, some 250 bytes and so 1 MB.
MAX_BLOCKS = 4_000
MAX_PARENT_BYTES = 8 << 20
MAX_WORKER_BYTES = 3 << 18


@dataclass
class Held:
    """What the parent holds, and the one worker that is never killed."""

    children: int
    descriptors: int
    blocks: int
    parent_bytes: int
    worker: int
    worker_bytes: int


@dataclass
class Trial:
    warm: Held
    done: Held
    misjudged: list[tuple[Item, Verdict]] = field(default_factory=list)
    hangs: list[Verdict] = field(default_factory=list)
    replaced: int = 0


@pytest.fixture(scope="module")
def trial() -> Trial:
    with OwnProcess() as process:
        return process.run(run_trial)


def run_trial() -> Trial:
    """All gradings in calls of a thousand. The pool feeds its first worker first, so all harm is done to that one."""
    with RewardPool("math", 2, 30.0) as pool:
        result = Trial(held(pool), held(pool))
        for call in range(CALLS):
            if call == WARM_CALLS:
                result.warm = held(pool)
            run_call(pool, call, result)
        result.done = held(pool)
        return result


def run_call(pool: RewardPool, call: int, result: Trial) -> None:
    pool.grade([])  # waits until every worker is ready
    first = pool.worker_pids[0]
    if call % 3 == 0:
        result.hangs += pool.grade([HANG], timeout_seconds=HANG_LIMIT)
    elif call % 3 == 1:
        os.kill(first, signal.SIGKILL)
    else:  # stopped, it cannot have answered its batch when it is killed
        os.kill(first, signal.SIGSTOP)
        threading.Timer(0.2, os.kill, (first, signal.SIGKILL)).start()
    items = mixed_items(call)
    verdicts = pool.grade([(item.response, item.truth) for item in items])
    judged = zip(items, verdicts, strict=True)
    result.misjudged += [(i, v) for i, v in judged if v.outcome != ("right" if i.is_right else "wrong")]
    result.replaced += first not in pool.worker_pids


def mixed_items(call: int) -> list[Item]:
    other_numbers = [Item(rf"\boxed{{{n + 1}}}", str(n), False) for n in range(OTHER_NUMBER)]
    items = equal_items(call * EQUAL, EQUAL) + other_numbers + other_form_items(0, OTHER_FORM)
    random.Random(call).shuffle(items)
    return items


def held(pool: RewardPool) -> Held:
    pool.grade([])
    gc.collect()
    parent, worker = psutil.Process(), pool.worker_pids[1]
    return Held(
        children=len(parent.children(recursive=True)),
        descriptors=parent.num_fds(),
        blocks=sys.getallocatedblocks(),
        parent_bytes=anonymous_bytes(parent.pid),
        worker=worker,
        worker_bytes=anonymous_bytes(worker),
    )


def anonymous_bytes(pid: int) -> int:
    """Resident memory of its own; pages of libraries come and go with the other processes that map them."""
    [kilobytes] = re.findall(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(kilobytes) << 10


def test_every_verdict_is_as_without_the_harm(trial: Trial) -> None:
    assert trial.replaced == CALLS
    assert trial.misjudged == []
    assert [verdict.reason.partition(":")[0] for verdict in trial.hangs] == ["timeout"] * 4


def test_no_process_and_no_descriptor_is_left(trial: Trial) -> None:
    assert trial.done.children == trial.warm.children
    assert trial.done.descriptors == trial.warm.descriptors


def test_the_parent_does_not_grow(trial: Trial) -> None:
    assert trial.done.blocks - trial.warm.blocks < MAX_BLOCKS
    assert trial.done.parent_bytes - trial.warm.parent_bytes < MAX_PARENT_BYTES


def test_a_worker_does_not_grow(trial: Trial) -> None:
    assert trial.done.worker == trial.warm.worker
    assert trial.done.worker_bytes - trial.warm.worker_bytes < MAX_WORKER_BYTES
