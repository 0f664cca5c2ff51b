"""`pyrl train` as a user runs it: real learner, real server, real graders; killed, resumed, in several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from pyrl.rollout.server import ServerPool
from tests import soak


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[soak.Job]:
    folder = tmp_path_factory.mktemp("train")
    config = soak.prepare(folder)
    with ServerPool.start(config, config.model.path, folder) as servers:
        (url,) = servers.wait_ready()
        yield soak.Job(folder, config, url)


@pytest.fixture(scope="module")
def unbroken(job: soak.Job) -> Path:
    job.finish(job.folder / "unbroken")
    return job.folder / "unbroken"


def test_a_run_leaves_what_it_promises(unbroken: Path) -> None:
    rows = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5]
    assert [r["policy_version"] for r in rows] == [0, 1, 2, 3, 4]
    assert [r["gradient_step"] for r in rows] == [2, 4, 6, 8, 10]
    for row in rows:
        assert row["verdicts_right"] + row["verdicts_wrong"] == 64 and row["verdicts_unjudged"] == 0
        assert row["reward_mean"] == row["verdicts_right"] / 64
        assert 0 < row["entropy"] < 3.5 and row["selected_tokens"] > 0
        assert row["logprob_gap_max"] < 1e-3
    assert len({r["entropy"] for r in rows}) == 5  # the policy moved
    samples = [json.loads(line) for line in (unbroken / "samples.jsonl").read_text().splitlines()]
    assert {s["step"] for s in samples} == {1, 2, 3, 4, 5} and all(s["prompt"] for s in samples)
    kept = sorted(p.name for p in (unbroken / "checkpoints").iterdir())
    assert kept == ["step_000004", "step_000005"]
    assert AutoTokenizer.from_pretrained(unbroken / "final").eos_token_id == 0
    assert AutoModelForCausalLM.from_pretrained(unbroken / "final").num_parameters() == 558_720
    assert list(unbroken.glob("events.out.tfevents.*")) and (unbroken / "config.yaml").exists()
    assert "<svg" in (unbroken / "report.html").read_text()


def test_the_same_seed_twice_is_equal(job: soak.Job, unbroken: Path) -> None:
    job.finish(job.folder / "again")
    assert soak.differences(unbroken, job.folder / "again") == []


def test_killed_in_a_step_and_resumed_is_equal(job: soak.Job, unbroken: Path) -> None:
    folder = job.folder / "killed-in-step"
    metrics = folder / "metrics.jsonl"
    assert job.kill_when(folder, lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 2, 0.1)
    job.finish(folder)
    assert "resumed from" in (folder / "train.log").read_text()
    assert soak.differences(unbroken, folder) == []


def test_killed_in_a_checkpoint_and_resumed_is_equal(job: soak.Job, unbroken: Path) -> None:
    folder = job.folder / "killed-in-checkpoint"
    second = folder / "checkpoints" / ".writing_step_000002"
    assert job.kill_when(folder, second.exists)
    job.finish(folder)
    assert soak.differences(unbroken, folder) == []


def test_a_resumed_run_with_other_settings_is_refused(job: soak.Job, unbroken: Path) -> None:
    process = subprocess.run(job.command(unbroken, "optimizer.lr=0.5"), capture_output=True, text=True, timeout=200)
    assert process.returncode == 2
    assert "optimizer.lr" in process.stderr and "other settings" in process.stderr


def test_two_ranks_train_and_a_killed_rank_ends_the_job_by_name(job: soak.Job) -> None:
    """DP 2 under torchrun. The launcher watches the ranks; the survivor may be in a collective."""
    folder = job.folder / "two-ranks"
    arguments = job.command(folder, "deterministic=false", "steps=500", "checkpoint.every=0")[2:]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    with (job.folder / "two-ranks.log").open("wb") as log:
        command, environment = [sys.executable, *launch, *arguments], os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 200
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None and time.monotonic() < deadline, (job.folder / "two-ranks.log").read_text()
            time.sleep(0.1)
        ranks = {p.environ()["RANK"]: p for p in psutil.Process(process.pid).children() if "RANK" in p.environ()}
        assert sorted(ranks) == ["0", "1"]
        ranks["1"].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        assert process.wait(60) != 0
        assert time.monotonic() - killed < 60
    finally:
        process.kill()
    text = (job.folder / "two-ranks.log").read_text()
    assert "local_rank: 1" in text and "SIGKILL" in text.replace("Signal 9", "SIGKILL")
