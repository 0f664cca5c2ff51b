"""Phase times against a clock that the test moves."""

import time

import pytest

from pyrl.telemetry.names import METRICS
from pyrl.telemetry.timers import Timers


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def test_phases_are_disjoint_and_add_up(clock) -> None:
    timers = Timers()
    clock(1)
    with timers.phase("rollout"):
        clock(2)
        with timers.phase("reward"):
            clock(4)
        clock(8)
    with timers.phase("rollout"):
        clock(16)
    clock(32)
    assert timers.collect() == {"seconds_step": 63, "seconds_rollout": 26, "seconds_reward": 4}
    clock(5)
    assert timers.collect() == {"seconds_step": 5}
    assert {"seconds_step", "seconds_rollout", "seconds_reward"} <= set(METRICS)


def test_validation_owns_the_generation_inside_it(clock) -> None:
    timers = Timers()
    with timers.phase("validation"):
        clock(1)
        with timers.phase("rollout"):
            clock(2)
    assert timers.collect() == {"seconds_step": 3, "seconds_validation": 3}


def test_a_phase_ends_with_its_error(clock) -> None:
    timers = Timers()
    with pytest.raises(KeyError), timers.phase("update"):
        clock(3)
        raise KeyError
    clock(1)
    assert timers.collect() == {"seconds_step": 4, "seconds_update": 3}


def test_device_work_is_waited_for_at_each_boundary(clock) -> None:
    timers = Timers(synchronize=lambda: clock(1))
    with timers.phase("update"):
        pass
    assert timers.collect()["seconds_update"] == 1


def test_misuse_is_named() -> None:
    timers = Timers()
    with pytest.raises(ValueError, match="'rolout' is unknown: use one of rollout"), timers.phase("rolout"):
        pass
    with pytest.raises(RuntimeError, match="inside phase 'sync'"), timers.phase("sync"):
        timers.collect()


def test_overhead_is_far_below_a_step() -> None:
    timers = Timers()
    start = time.perf_counter()
    for _ in range(1000):
        with timers.phase("update"):
            pass
    assert (time.perf_counter() - start) / 1000 < 1e-3
