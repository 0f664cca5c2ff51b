"""Runs what a study plans, one or more runs at a time; called again, it goes on where it was."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml
from rich.console import Console

from pyrl.config import ConfigError, RunConfig
from pyrl.jobs.job import Job, ServerStart
from pyrl.jobs.workers import start_workers
from pyrl.run_folder import METRICS, changed_fields, locked
from pyrl.study.config import PlannedRun, StudyConfig, plan_runs
from pyrl.study.start import make_start, start_settings
from pyrl.telemetry.jsonl import last_recorded_step

START = "start"
HOUR = 3600.0


def run_study(study: StudyConfig, folder: Path, *, time_limit: float | None = None, workers: int = 1) -> bool:
    """Make every run that is missing; whether all are done.

    `workers`: runs at a time, each with servers of its own.
    `time_limit`: hours, after which present runs are left at a checkpoint between two steps; SIGTERM does the same.
    Calling again goes on from there, to the bit where the runs are deterministic. Raises ConfigError, before anything
    is started, for settings of any arm that a run cannot have or that are not those of a run which is there already.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("pyrl study starts its own processes: start it without torchrun")
    planned = planned_runs(study, folder)
    with locked(folder, option="--folder"):
        missing = [run for run in planned if not is_done(run)]
        if not missing:
            return True
        return _run_all(study, missing, folder, time_limit, workers)


def planned_runs(study: StudyConfig, folder: Path) -> list[PlannedRun]:
    """As `run_study` would run them."""
    return plan_runs(study, folder, start_settings(study, folder / START))


def is_done(run: PlannedRun) -> bool:
    """Whether its last step is recorded. ConfigError where the folder holds a run of other settings."""
    last = last_recorded_step(run.folder / METRICS)
    path = run.folder / "config.yaml"
    if last is not None and path.is_file():
        before = RunConfig.model_validate(yaml.safe_load(path.read_text()))
        changed = changed_fields(before.model_dump(mode="json"), run.config.model_dump(mode="json"))
        if last > run.config.steps:
            changed.append("steps")  # fewer than it has; a run may be given more
        if changed:
            raise ConfigError(
                f"{run.folder} holds a run with other settings of {', '.join(changed)}: restore them, give another "
                "--folder, or remove that run"
            )
    return last is not None and last >= run.config.steps


def _run_all(
    study: StudyConfig, missing: list[PlannedRun], folder: Path, time_limit: float | None, workers: int
) -> bool:
    console = Console(soft_wrap=True, markup=False, highlight=False)
    console.print(f"runs to make: {'; '.join(run.title for run in missing)}")
    with asked_to_stop(time_limit) as stop:
        done = _make_starts(study, missing, folder, stop) and _make_runs(missing, folder, workers, stop)
    if not done:
        left = [run.title for run in missing if not is_done(run)]
        console.print(f"stopped before the end of {len(left)} runs, {left[0]} first; the same command goes on")
    return done


def _make_starts(study: StudyConfig, missing: list[PlannedRun], folder: Path, stop: Callable[[], bool]) -> bool:
    """Of every seed. Whether all are there."""
    for seed in dict.fromkeys(run.seed for run in missing):
        if stop():
            return False
        make_start(study, folder / START, seed)
    return True


def _make_runs(missing: list[PlannedRun], folder: Path, workers: int, stop: Callable[[], bool]) -> bool:
    """Whether all came to their end."""
    first = missing[0].config
    with start_workers(ServerStart(first, first.model.path, folder), workers) as started:
        return started.run([Job(run.title, run.config, run.folder) for run in missing], stop)


@contextlib.contextmanager
def asked_to_stop(hours: float | None) -> Iterator[Callable[[], bool]]:
    """A question that is answered with yes once the time is up or SIGTERM has come."""
    deadline = None if hours is None else time.monotonic() + hours * HOUR
    told = False

    def tell(*_: object) -> None:
        nonlocal told
        told = True

    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield lambda: told or (deadline is not None and time.monotonic() >= deadline)
    finally:
        signal.signal(signal.SIGTERM, before)
