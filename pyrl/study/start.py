"""Where the runs of a study start: a model and prompts, made once and kept in the study's folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from pyrl.config import ConfigError, parse_config
from pyrl.quickstart.model import write_model
from pyrl.quickstart.run import DEMONSTRATIONS, SUPERVISED_LOSS, TRAIN_PROMPTS, VALIDATION_PROMPTS, supervised_phase
from pyrl.quickstart.task import Task, TaskFiles, write_task
from pyrl.study.config import StudyConfig, TaskConfig, merged

TASK = "task.yaml"
START_SEED = 0
"""Of the task, of the random weights and of the supervised phase: the runs of a study differ in what comes after."""


def start_settings(study: StudyConfig, folder: Path) -> dict[str, Any]:
    """What the start adds to the settings of every run. Raises ConfigError where they set it themselves, and where
    `folder` holds the start of another task."""
    if study.start is None:
        return {}
    for section, names in (("model", ("path",)), ("data", ("path", "validation_path"))):
        for name in names:
            if name in study.run.get(section, {}):
                raise ConfigError(f"run.{section}.{name}: `start: {study.start}` makes it; leave one of the two out")
    _check_task(study, folder)
    return _paths(folder)


def _paths(folder: Path) -> dict[str, Any]:
    files = _task_files(folder)
    return {
        "model": {"path": str(folder / "supervised")},
        "data": {"path": str(files.train), "validation_path": str(files.validation)},
    }


def make_start(study: StudyConfig, folder: Path) -> None:
    """Write task and fine-tuned model into `folder`, whole or not at all; nothing where they are there already."""
    if study.start is None or folder.exists():
        return
    writing = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(writing, ignore_errors=True)  # a killed writer's
    try:
        files = write_task(
            writing / "data", seed=START_SEED, train=TRAIN_PROMPTS, validation=VALIDATION_PROMPTS,
            demonstrations=DEMONSTRATIONS, task=Task(study.task.given, study.task.used),
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(f"task.given, task.used: {error}") from error
    write_model(writing / "random", seed=START_SEED)
    loss = study.task.supervised_loss or SUPERVISED_LOSS
    config = parse_config(merged(study.run, _paths(writing)) | {"seed": START_SEED}, origin="run")
    supervised_phase(config, writing / "random", files, writing / "supervised", target_loss=loss)
    (writing / TASK).write_text(yaml.safe_dump(study.task.model_dump()))
    writing.rename(folder)


def _check_task(study: StudyConfig, folder: Path) -> None:
    if not folder.exists():
        return
    there = TaskConfig.model_validate(yaml.safe_load((folder / TASK).read_text()))
    if there != study.task:
        raise ConfigError(f"{folder} holds the start of another task ({there}): restore it, or give another --folder")


def _task_files(folder: Path) -> TaskFiles:
    data = folder / "data"
    return TaskFiles(data / "train.jsonl", data / "validation.jsonl", data / "demonstrations.jsonl")
