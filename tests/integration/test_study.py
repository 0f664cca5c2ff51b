"""`pyrl study` as a user starts it: stopped between two steps, it goes on to the records of an unbroken one."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import yaml

from tests import program
from tests.integration.killing import steps_done
from tests.run_job import Job, Process, differences, rows

pytestmark = pytest.mark.slow

STEPS, UNFINISHED = 4, 3
ARMS = {"grpo": {"set": {"loss": {"name": "ppo_clip"}}}, "kl_cov": {}}


def start(job: Job, folder: Path) -> Process:
    tree = job.config.model_dump(mode="json") | {"steps": STEPS}
    tree["rollout"]["urls"] = list(job.urls)
    tree["data"]["validation_path"] = tree["data"]["path"]
    tree["validation"] = {"every": STEPS, "final_samples_per_prompt": 4, "max_prompts": 6}
    del tree["seed"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"run": tree, "arms": ARMS}))
    log = folder / "study.log"
    log.touch()
    said = log.stat().st_size
    return Process(program.start(["study", str(path), "--folder", str(folder / "out")], log), log, said)


def finish(process: Process) -> int:
    try:
        return process.launcher.wait(400)
    finally:
        process.kill()


def test_stopped_and_called_again_it_equals_the_unbroken_study(job: Job, tmp_path: Path) -> None:
    unbroken = start(job, tmp_path / "unbroken")
    assert finish(unbroken) == 0, unbroken.log()
    broken = tmp_path / "broken" / "out"
    first = start(job, tmp_path / "broken")
    try:
        assert first.wait_until(lambda _: steps_done(broken / "runs" / "grpo" / "seed_0") >= 2), first.log()
        first.launcher.send_signal(signal.SIGTERM)
        assert finish(first) == UNFINISHED, first.log()
    finally:
        first.kill()
    assert "stopped before the end of 2 runs, grpo, seed 0 first; the same command goes on" in first.log()
    assert 2 <= steps_done(broken / "runs" / "grpo" / "seed_0") <= STEPS and not (broken / "runs" / "kl_cov").exists()
    second = start(job, tmp_path / "broken")
    assert finish(second) == 0, second.log()

    for arm in ARMS:
        one, other = (tmp_path / name / "out" / "runs" / arm / "seed_0" for name in ("unbroken", "broken"))
        assert differences(one, other) == []
        assert (one / "validation.jsonl").read_bytes() == (other / "validation.jsonl").read_bytes()
        last = [row for row in rows(one, "validation.jsonl") if row["step"] == STEPS]
        assert [row["samples"] for row in last] == [4] * 6
    numbers = json.loads((broken / "study.json").read_text())
    assert [arm["arm"] for arm in numbers["arms"]] == ["grpo", "kl_cov"] and numbers["missing_runs"] == []
    assert list(numbers["arms"][0]["pass_at_k"]) == ["1", "2", "4"]
