"""Ranks that wait for one another: threads with a store of their own, and real gloo processes."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
import torch.distributed as dist

from pyrl.learner import barrier as module
from pyrl.learner.barrier import RankBarrier, RankWaitError
from tests.ops.gloo import run_on_ranks


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.0)


def wait(barrier: RankBarrier, seconds: float) -> None:
    barrier.wait("the slow one", seconds=seconds, setting="rollout.timeout_seconds")


def test_nobody_leaves_before_the_last_one_comes() -> None:
    store, left = dist.HashStore(), []

    def rank(number: int) -> None:
        barrier = RankBarrier(store, number, 3)
        for turn in range(3):
            time.sleep(0.2 * (number == turn))  # each is late once
            arrived.append(turn)
            wait(barrier, 20.0)
            left.append((turn, arrived.count(turn)))

    arrived: list[int] = []
    threads = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(left) == [(turn, 3) for turn in range(3) for _ in range(3)]  # all had come when anybody left


def test_a_rank_that_does_not_come_is_named_after_the_deadline() -> None:
    store = dist.HashStore()
    ranks = [RankBarrier(store, number, 4) for number in range(4)]
    threads = [threading.Thread(target=wait, args=(r, 5.0)) for r in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()  # all passed the first meeting; at the second two are missing

    def in_vain() -> None:
        with contextlib.suppress(RankWaitError):
            wait(ranks[2], 0.5)

    companion = threading.Thread(target=in_vain)
    companion.start()
    started = time.monotonic()
    with pytest.raises(RankWaitError, match=r"rank 0 .*rollout.timeout_seconds.* for the slow one: rank 1, 3 did not"):
        wait(ranks[0], 0.5)
    companion.join()
    assert 0.5 <= time.monotonic() - started < 4.0


def test_those_that_wait_are_more_patient_than_those_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 1.0)
    store = dist.HashStore()
    late = threading.Timer(0.7, wait, (RankBarrier(store, 1, 2), 5.0))
    late.start()
    wait(RankBarrier(store, 0, 2), 0.1)
    late.join()


def test_a_wait_that_has_become_vain_is_over() -> None:
    store, looks = dist.HashStore(), []

    def check() -> None:
        looks.append(time.monotonic())
        if len(looks) == 3:
            raise OSError("given up")

    started = time.monotonic()
    with pytest.raises(OSError, match="given up"):
        RankBarrier(store, 0, 2).wait("the slow one", seconds=60.0, setting="rollout.timeout_seconds", check=check)
    assert time.monotonic() - started < 20.0


def test_one_rank_waits_for_nobody() -> None:
    wait(RankBarrier(None, 0, 1), 0.0)


def _meet() -> str:
    from pyrl.config import ParallelConfig
    from pyrl.learner.parallel import init_parallel

    parallel = init_parallel(ParallelConfig())
    wait(parallel.barrier, 120.0)
    if parallel.rank == 1:
        return ""
    module.GRACE_SECONDS = 0.0
    with pytest.raises(RankWaitError) as caught:
        wait(parallel.barrier, 0.3)
    return str(caught.value)


def test_real_ranks_meet_over_the_store_of_their_job() -> None:
    assert "rank 1 did not come" in run_on_ranks(2, _meet)[0]
