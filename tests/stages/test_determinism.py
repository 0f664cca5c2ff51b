"""Counts on which the bits of a deterministic run depend, and why they do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pyrl.config import ConfigError, RunConfig, parse_config
from pyrl.stages.determinism import check_deterministic, check_part_counts, part_counts

CHECKPOINT = Path("run/checkpoints/step_000002")
COUNTS = {"ranks": 1, "parallel.threads": [2], "rollout.threads": [2]}


def config(deterministic: bool = True, **sections: Any) -> RunConfig:
    return parse_config({"model": {"path": "m"}, "data": {"path": "d"}, "deterministic": deterministic, **sections})


def place(device: str = "cpu", world_size: int = 1) -> Any:
    return SimpleNamespace(device=torch.device(device), world_size=world_size)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_thread_counts_change_the_bits_of_a_sum(threads: None) -> None:
    """Why they are compared."""
    values = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    sums = []
    for count in (1, 2):
        torch.set_num_threads(count)
        sums.append([values[start:].sum().item() for start in range(20)])
    assert sums[0] != sums[1] and sums[0] == pytest.approx(sums[1], rel=1e-4)


def test_counts_are_the_resolved_ones(threads: None) -> None:
    torch.set_num_threads(3)
    cores = len(os.sched_getaffinity(0))
    assert part_counts(config(), place()) == {"ranks": 1, "parallel.threads": [3], "rollout.threads": [cores]}
    assert part_counts(config(rollout={"threads": 5}), place())["rollout.threads"] == [5]
    assert part_counts(config(rollout={"urls": ["http://h:1"]}), place())["rollout.threads"] is None


def test_every_count_that_occurs_on_some_rank_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrl.stages.determinism.gather_from_every_rank", lambda own, _: [(2, 8), own, (2, 4), (1, 8)])
    counts, own = part_counts(config(rollout={"threads": 4}), place(world_size=4)), torch.get_num_threads()
    assert counts == {"ranks": 4, "parallel.threads": sorted({1, 2, own}), "rollout.threads": [4, 8]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": 2}, r"step_000002 was written with 1 ranks, this run has 2: .*start as many processes as then"),
        ({"parallel.threads": [1, 4]}, r"with 2 CPU threads a rank, this run has 1 or 4: .*set parallel\.threads"),
        ({"rollout.threads": [1]}, r"with 2 CPU threads a vLLM server, this run has 1: .*set rollout\.threads"),
    ],
)
def test_other_counts_are_refused_where_bits_were_promised(change: dict[str, Any], message: str) -> None:
    state = {"part_counts": COUNTS}
    with pytest.raises(ConfigError, match=message):
        check_part_counts(config(), CHECKPOINT, state, COUNTS | change)
    check_part_counts(config(deterministic=False), CHECKPOINT, state, COUNTS | change)


def test_servers_that_somebody_else_started_have_no_count_to_compare() -> None:
    given = COUNTS | {"rollout.threads": None}
    check_part_counts(config(), CHECKPOINT, {"part_counts": COUNTS}, given)
    check_part_counts(config(), CHECKPOINT, {"part_counts": given}, COUNTS)


def test_determinism_is_for_the_cpu() -> None:
    check_deterministic(config(), place())
    check_deterministic(config(deterministic=False), place("cuda"))
    with pytest.raises(ConfigError, match=r"deterministic: true on cuda: .*deterministic: false"):
        check_deterministic(config(), place("cuda"))
