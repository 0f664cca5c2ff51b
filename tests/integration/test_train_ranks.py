"""`torchrun ... pyrl train` with two data-parallel ranks, each with a server of its own."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run_job import STEPS, Job, differences, rows, served_job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    with served_job(tmp_path_factory.mktemp("ranks"), ranks=2) as job:
        yield job


@pytest.fixture(scope="module")
def unbroken(job: Job) -> Path:
    job.finish(job.folder / "unbroken")
    return job.folder / "unbroken"


def test_two_ranks_train_on_all_their_prompts(unbroken: Path) -> None:
    recorded = rows(unbroken)
    assert [row["step"] for row in recorded] == list(range(1, STEPS + 1))
    for row in recorded:
        assert row["verdicts_right"] + row["verdicts_wrong"] == 64 and row["groups_kept"] == 16
        assert row["logprob_gap_max"] < 1e-3
    assert {sample["step"] for sample in rows(unbroken, "samples.jsonl")} == set(range(1, STEPS + 1))


def test_a_killed_rank_ends_the_job_by_name_and_the_resumed_job_is_equal(job: Job, unbroken: Path) -> None:
    """The launcher watches the ranks; the survivor may be in a collective."""
    folder = job.folder / "killed"
    metrics = folder / "metrics.jsonl"
    process = job.start(folder)
    try:
        assert process.wait_until(lambda p: metrics.exists() and metrics.read_bytes().count(b"\n") >= 2), process.log()
        ranks = process.ranks()
        assert sorted(ranks) == ["0", "1"]
        ranks["1"].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        assert process.launcher.wait(60) != 0
        assert time.monotonic() - killed < 60
    finally:
        process.kill()
    text = process.log()
    assert "local_rank: 1" in text and "SIGKILL" in text.replace("Signal 9", "SIGKILL")
    assert len(rows(folder)) < STEPS and not (folder / "final").exists()

    job.finish(folder)
    assert "resumed from" in (folder / "train.log").read_text()
    assert differences(unbroken, folder) == []
