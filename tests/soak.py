"""Kill runs at random moments, resume them, and compare with an unbroken one: `make soak`, or `python -m tests.soak`.

The run is the real one: `pyrl train` in a process of its own, on a vLLM server that outlives it. Each run is killed
several times, later each time, and resumed after each kill: importing torch costs more than the steps.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.run_job import STEPS, Job, Process, differences, served_job

KILLS_PER_RUN = 4
IN_STEPS = "engines hold version"
"""The log's words when a run has given the engines its weights: the first step begins."""
RESUMED = "resumed from"


@dataclass(frozen=True)
class Moment:
    """When to kill: `delay` seconds after `condition` holds."""

    name: str
    condition: Callable[[Process], bool]
    delay: float


def moments(run_folder: Path, kills: int, rng: random.Random) -> list[Moment]:
    """Random moments of one run, each in a later step than the one before."""
    steps = sorted(rng.sample(range(1, STEPS + 1), kills))
    return [_moment(run_folder, step, before, rng) for before, step in zip([0, *steps], steps, strict=False)]


def _moment(run_folder: Path, step: int, before: int, rng: random.Random) -> Moment:
    """In `step`, of a run that was last killed in step `before`."""
    metrics, checkpoints = run_folder / "metrics.jsonl", run_folder / "checkpoints"
    writing, written = checkpoints / f".writing_step_{step:06d}", checkpoints / f"step_{step:06d}"

    def begun(process: Process) -> bool:
        return IN_STEPS in process.log() and metrics.read_bytes().count(b"\n") >= step - 1

    choices = [
        (4, Moment(f"in step {step}", begun, rng.uniform(0.0, 1.5))),  # generation, grading, updates, sync
        (3, Moment(f"writing checkpoint {step}", lambda process: writing.exists(), rng.uniform(0.0, 0.1))),
        (2, Moment(f"after the rename of checkpoint {step}", lambda process: written.exists(), 0.0)),
    ]
    if before > 1:  # it has a checkpoint then
        choices.append((1, Moment("resuming", lambda process: RESUMED in process.log(), rng.uniform(0.0, 1.0))))
    return rng.choices([choice for _, choice in choices], weights=[weight for weight, _ in choices])[0]


def kill(job: Job, run_folder: Path, moment: Moment) -> bool:
    """Start or resume the run and kill it; False when it was done before. Raises RuntimeError when it failed."""
    process = job.start(run_folder)
    if not process.wait_until(moment.condition):
        if process.launcher.returncode:
            raise RuntimeError(f"exit code {process.launcher.returncode}:\n{process.log()[-3000:]}")
        return False
    time.sleep(moment.delay)
    return process.kill()


def soak(job: Job, kills: int, rng: random.Random) -> int:
    """Kill `kills` times; returns the number of runs that differ from the unbroken one."""
    began = time.monotonic()
    job.finish(job.folder / "unbroken")
    print(f"the unbroken run took {time.monotonic() - began:.0f} s", flush=True)
    done = failed = number = 0
    while done < kills:
        run_folder = job.folder / f"run-{number}"
        for moment in moments(run_folder, min(KILLS_PER_RUN, kills - done), rng):
            killed = kill(job, run_folder, moment)
            done += killed
            print(f"{done:3d} run {number}: {moment.name} + {moment.delay:.2f} s: "
                  f"{'killed' if killed else 'had ended'}", flush=True)  # fmt: skip
        job.finish(run_folder)
        found = differences(job.folder / "unbroken", run_folder)
        failed += bool(found)
        print(f"    run {number}: {'differs: ' + str(found[:5]) if found else 'equal'}", flush=True)
        number += 1
    print(f"{done} kills of {number} runs in {time.monotonic() - began:.0f} s: {failed} runs differ")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pyrl-soak-"))
    with served_job(folder) as job:
        failed = soak(job, options.kills, random.Random(options.seed))
    if failed:
        print(f"the runs are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
