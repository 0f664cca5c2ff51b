"""Where the runs of a study start: for each seed a model and prompts, made once and kept in the study's folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from pyrl.config import ConfigError, parse_config
from pyrl.quickstart.model import write_model
from pyrl.quickstart.run import SUPERVISED_LOSS, supervised_phase, write_files
from pyrl.quickstart.task import TaskFiles
from pyrl.study.config import StartOf, StudyConfig, TaskConfig, merged

TASK = "task.yaml"


def start_settings(study: StudyConfig, folder: Path) -> StartOf:
    """What the start of a seed adds to the settings of its runs. Raises ConfigError where they set it themselves, and
    where `folder` holds the start of another task."""
    if study.start is None:
        return lambda seed: {}
    for section, names in (("model", ("path",)), ("data", ("path", "validation_path"))):
        for name in names:
            if name in study.run.get(section, {}):
                raise ConfigError(f"run.{section}.{name}: `start: {study.start}` makes it; leave one of the two out")
    for made in folder.glob(f"*/{TASK}"):
        _check_task(study, made)
    return lambda seed: _paths(_of_seed(folder, seed))


def make_start(study: StudyConfig, folder: Path, seed: int) -> None:
    """Write task and fine-tuned model of `seed` into `folder`, whole or not at all; nothing where they are there.

    They are those of `pyrl quickstart seed=SEED`: gates, questions, random weights and demonstrations are drawn by it.
    """
    made = _of_seed(folder, seed)
    if study.start is None or made.exists():
        return
    writing = made.with_name(made.name + ".tmp")
    shutil.rmtree(writing, ignore_errors=True)  # a killed writer's
    task = study.task.ring_walk()
    try:
        files = write_files(writing / "data", seed=seed, task=task)
    except ValueError as error:
        raise ConfigError(f"task: {error}") from error
    write_model(writing / "random", seed=seed, task=task)
    loss = study.task.supervised_loss or SUPERVISED_LOSS
    config = parse_config(merged(study.run, _paths(writing)) | {"seed": seed}, origin="run")
    supervised_phase(config, writing / "random", files, writing / "supervised", target_loss=loss)
    (writing / TASK).write_text(yaml.safe_dump(study.task.model_dump()))
    writing.rename(made)


def _of_seed(folder: Path, seed: int) -> Path:
    return folder / f"seed_{seed}"


def _paths(folder: Path) -> dict[str, Any]:
    files = TaskFiles.of(folder / "data")
    return {
        "model": {"path": str(folder / "supervised")},
        "data": {"path": str(files.train), "validation_path": str(files.validation)},
    }


def _check_task(study: StudyConfig, made: Path) -> None:
    there = TaskConfig.model_validate(yaml.safe_load(made.read_text()))
    if there != study.task:
        raise ConfigError(
            f"{made.parent} holds the start of another task ({there}): restore it, or give another --folder"
        )
