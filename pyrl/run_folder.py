"""A run folder before its run: who may write to it, and where the run starts. Nothing here writes, but for the lock."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from pyrl.config import ConfigError, RunConfig
from pyrl.learner.checkpoint_store import CheckpointError, complete_checkpoints, read_trainer_state
from pyrl.telemetry.jsonl import RecordFileError, last_recorded_step

CHECKPOINTS, FINAL, LOCK, METRICS = "checkpoints", "final", "run.lock", "metrics.jsonl"

SHARED_SECONDS = 30.0
"""A network disk may show a new file this late."""

RESUMABLE_CHANGES = (
    "steps",
    "checkpoint",
    "validation",
    "evaluation",
    "instruments.entropy_change_every",
    "data.validation_path",
    "reward.workers",
    "reward.timeout_seconds",
    "rollout.dynamic_sampling.max_refills",
    "rollout.urls",
    "rollout.request_timeout_seconds",
    "rollout.max_retries",
    "rollout.timeout_seconds",
    "rollout.startup_timeout_seconds",
    "rollout.sync_timeout_seconds",
    "rollout.kv_cache_gib",
    "rollout.gpu_memory_utilization",
    "rollout.threads",
    "parallel.timeout_seconds",
    "parallel.threads",
)
"""Settings that a resumed run may have other than its checkpoint: where it runs, how long it waits and how often it
tries, not what it computes. Of a deterministic run the thread counts themselves are compared (`stages.determinism`)."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a run goes on."""

    checkpoint: Path
    state: dict[str, Any]
    """What the trainer saved with it."""


@contextmanager
def locked(folder: Path, option: str = "--run-folder") -> Iterator[str]:
    """Make the folder and keep other runs out of it. The kernel frees it when this process ends, however it ends.

    Yields what the lock says of its holder. `option`: of the command line, by which another folder is given. Raises
    ConfigError: another process holds it (which one is named), or it cannot be made.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_held(folder, option))
            holder = f"{os.getpid()} on {socket.gethostname()}\n"
            (folder / LOCK).write_text(holder)
        except OSError as error:
            raise ConfigError(f"run folder {folder} cannot be used: {error}; give another {option}") from error
        yield holder


def check_shared(folder: Path, holder: str) -> None:
    """Raises ConfigError where the folder that this rank sees is not the one that rank 0 has locked as `holder`.

    Every rank writes its part of a checkpoint there.
    """
    deadline = time.monotonic() + SHARED_SECONDS
    while not (folder / LOCK).is_file() or (folder / LOCK).read_text() != holder:
        if time.monotonic() > deadline:
            raise ConfigError(
                f"run folder {folder} on {socket.gethostname()} is not the one that rank 0 has locked, process "
                f"{holder.strip()}: on several nodes it must be on a disk that all of them share; give another "
                "--run-folder"
            )
        time.sleep(0.2)


def check_free(folder: Path) -> None:
    """Raises ConfigError where a run holds the folder; changes nothing."""
    if (folder / LOCK).exists():
        with _held(folder):
            pass


@contextmanager
def _held(folder: Path, option: str = "--run-folder") -> Iterator[None]:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = (folder / LOCK).read_text().strip() or "unknown"
        raise ConfigError(
            f"run folder {folder} is in use by process {holder}: wait for it, end it, or give another {option}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def find_resume_point(config: RunConfig, folder: Path) -> ResumePoint | None:
    """The checkpoint that a run in `folder` goes on from; None: it starts from the beginning. Reads only.

    Raises ConfigError: `checkpoint.resume` names no whole checkpoint, the settings are not those of the checkpoint, or
    the run would take the place of another one that nobody asked it to give up.
    """
    try:
        own, last_step = complete_checkpoints(folder / CHECKPOINTS), last_recorded_step(folder / METRICS)
        checkpoint = _choose_checkpoint(config.checkpoint.resume, folder, own, last_step)
        if checkpoint is None:
            return None
        point = ResumePoint(checkpoint, read_trainer_state(checkpoint))
    except (CheckpointError, RecordFileError) as error:
        raise ConfigError(str(error)) from error
    _check_settings(config, point)
    done = point.state["step"]
    if config.steps < done:
        raise ConfigError(
            f"steps {config.steps}, but {checkpoint} has {done} steps done: ask for {done} or more, resume from an "
            "earlier checkpoint (checkpoint.resume), or start anew in another run folder"
        )
    if last_step is not None and last_step < done:
        raise ConfigError(
            f"{folder / METRICS} ends at step {last_step} but {checkpoint} is of step {done}: records are "
            " lost. Resume from an older checkpoint, or into a new --run-folder (checkpoint.resume)"
        )
    return point


def _choose_checkpoint(
    resume: Path | Literal["auto", "never"], folder: Path, own: list[Path], last_step: int | None
) -> Path | None:
    """`own`: checkpoints in the folder; `last_step`: of its records."""
    if resume == "auto":
        if not own and last_step is not None and (folder / FINAL).exists():
            raise ConfigError(
                f"run folder {folder} holds a finished run of {last_step} steps without checkpoints (checkpoint.every "
                "0), so there is nothing to go on from: give another --run-folder, or remove it"
            )
        return own[-1] if own else None  # a run that was cut off before its first checkpoint begins anew
    if resume != "never" and resume.resolve() in [checkpoint.resolve() for checkpoint in own]:
        return resume  # back within the same run: what came later is set aside
    if own or last_step is not None:
        origin = "starts anew" if resume == "never" else f"starts from {resume}"
        remedy = "checkpoint.resume=auto goes on with that run; otherwise " if own else ""
        raise ConfigError(
            f"run folder {folder} holds another run and checkpoint.resume says that this one {origin}: {remedy}give "
            "another --run-folder, or remove it"
        )
    return None if resume == "never" else resume


def _check_settings(config: RunConfig, point: ResumePoint) -> None:
    changed = changed_fields(point.state["config"], config.model_dump(mode="json"))
    if changed:
        raise ConfigError(
            f"{point.checkpoint} was written by a run with other settings of {', '.join(changed)}: a resumed run would "
            "be neither the one nor the other. Restore them, or start anew in another run folder"
        )


def changed_fields(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Dotted names of the settings that differ and may not."""
    changed = []
    for key in sorted(old.keys() | new.keys()):
        if f"{prefix}{key}" in RESUMABLE_CHANGES:
            continue
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changed += changed_fields(before, after, f"{prefix}{key}.")
        elif before != after:
            changed.append(f"{prefix}{key}")
    return changed
