"""`torchrun ... pyrl train` on two servers with two data-parallel ranks, and a replica of 2 x 2 ranks."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pyrl.config import parse_config
from pyrl.rollout.server import ServerPool
from tests import program
from tests.integration.killing import check_records, disturb, interrupt, steps_done
from tests.run_job import STEPS, Job, differences, foreign_lines, rows, same_weights


@pytest.fixture(scope="module")
def job(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """The session's with a second server, a rank for each."""
    folder = tmp_path_factory.mktemp("ranks")
    tree = job.config.model_dump(mode="json")
    tree["rollout"]["servers_per_node"] = 2
    with ServerPool.start(job.config, job.folder / "random", folder) as second:
        yield Job(folder, parse_config(tree, origin="ranks"), (*job.urls, *second.wait_ready()), 2)


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


def test_every_rank_shows_our_lines_alone(unbroken: Path) -> None:
    assert foreign_lines((unbroken / "train.log").read_text()) == []


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

    job.finish_ranks(folder)
    assert "resumed from" in (folder / "train.log").read_text()
    assert differences(unbroken, folder) == []


@pytest.mark.slow
def test_the_killed_server_of_another_rank_is_restarted_and_the_run_equals_the_unbroken_one(
    job: Job, unbroken: Path
) -> None:
    """Rank 0 starts both servers and gives them weights; the second one works for rank 1."""
    folder = job.folder / "own-servers"
    run = job.start(folder, "rollout.urls=[]")
    disturb(run, folder, run.launcher.pid, log=folder / "server-1.log")
    assert run.log().count("restarting it") == 1
    check_records(folder, unbroken)


@pytest.mark.slow
def test_ctrl_c_ends_every_process_of_the_job(job: Job) -> None:
    folder = job.folder / "interrupted"
    run = job.start(folder)
    try:
        assert run.wait_until(lambda _: steps_done(folder) >= 1), run.log()
        code, left = interrupt(run)
    finally:
        run.kill()
    assert code != 0 and left == []
    assert "interrupted on rank 0" in run.log() and "interrupted on rank 1" in run.log()


@pytest.mark.slow
def test_tensor_and_pipeline_ranks_train_and_resume_as_one_replica(job: Job, unbroken: Path) -> None:
    """Only rank 0 generates, grades and sends weights; the last stages alone see a loss; every rank saves a shard."""
    four, folder = replace(job, ranks=4), job.folder / "tp2-pp2"
    layout = ["parallel.tp=2", "parallel.pp=2", "parallel.sequence_parallel=true", "steps=2"]
    four.finish_ranks(folder, *layout)
    recorded, data_parallel = rows(folder), rows(unbroken)
    assert [row["step"] for row in recorded] == [1, 2]
    assert all(row["logprob_gap_max"] < 1e-3 and row["groups_kept"] == 16 for row in recorded)
    for name in ("reward_mean", "response_tokens", "verdicts_right", "selected_tokens_updates"):
        assert recorded[0][name] == data_parallel[0][name], name  # one policy, the same seeds
    for name in ("entropy", "covariance_mean", "grad_norm"):
        assert recorded[0][name] == pytest.approx(data_parallel[0][name], rel=1e-4), name
    assert {sample["step"] for sample in rows(folder, "samples.jsonl")} == {1, 2}

    model = job.folder / "tp2-pp2-model"  # written by one process that holds all of it
    assert program.run(["convert", str(folder / "checkpoints/step_000002"), str(model)])[0] == 0
    assert same_weights(model, folder / "final")

    again = job.folder / "tp2-pp2-again"
    shutil.copytree(folder, again)
    four.finish_ranks(again, *layout, f"checkpoint.resume={again}/checkpoints/step_000001")
    assert "resumed from" in (again / "train.log").read_text()
    assert differences(folder, again) == []
