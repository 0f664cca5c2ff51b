"""Where the runs of a study start: a model and prompts, made once and kept in the study's folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pyrl.config import ConfigError, RunConfig, parse_config
from pyrl.quickstart.model import write_model
from pyrl.quickstart.run import DEMONSTRATIONS, TRAIN_PROMPTS, VALIDATION_PROMPTS, supervised_phase
from pyrl.quickstart.task import TaskFiles, write_task
from pyrl.study.config import StudyConfig, merged

START_SEED = 0
"""Of the task, of the random weights and of the supervised phase: the runs of a study differ in what comes after."""


def start_settings(study: StudyConfig, folder: Path) -> dict[str, Any]:
    """What the start adds to the settings of every run. Raises ConfigError where they set it themselves."""
    if study.start is None:
        return {}
    for section, names in (("model", ("path",)), ("data", ("path", "validation_path"))):
        for name in names:
            if name in study.run.get(section, {}):
                raise ConfigError(f"run.{section}.{name}: `start: {study.start}` makes it; leave one of the two out")
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
    files = write_task(
        writing / "data", seed=START_SEED, train=TRAIN_PROMPTS, validation=VALIDATION_PROMPTS,
        demonstrations=DEMONSTRATIONS,
    )  # fmt: skip
    write_model(writing / "random", seed=START_SEED)
    supervised_phase(_config(study, writing), writing / "random", files, writing / "supervised")
    writing.rename(folder)


def _config(study: StudyConfig, folder: Path) -> RunConfig:
    """For the supervised phase; its own learning rate and length are the quickstart's."""
    return parse_config(merged(study.run, start_settings(study, folder)) | {"seed": START_SEED}, origin="run")


def _task_files(folder: Path) -> TaskFiles:
    data = folder / "data"
    return TaskFiles(data / "train.jsonl", data / "validation.jsonl", data / "demonstrations.jsonl")
