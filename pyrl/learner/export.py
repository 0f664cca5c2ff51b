"""A checkpoint of a run as a Hugging Face folder, to be evaluated, served, or trained from."""

from __future__ import annotations

import os
from pathlib import Path

from pyrl.config import ConfigError, RunConfig
from pyrl.learner.checkpoint import load_checkpoint, read_trainer_state
from pyrl.learner.learner import Learner
from pyrl.learner.parallel import destroy_parallel, init_parallel


def export_checkpoint(checkpoint: Path, destination: Path) -> Path:
    """Write the policy of `checkpoint` (`RUN/checkpoints/step_000100`) as the run's `final/` is written; returns
    `destination`.

    One process holds the whole model and its optimizer; under torchrun, ranks split them as in the run. `model.path` of
    the run must still be there: names, shapes and the tokenizer are read from it. Raises ConfigError where it is not or
    `destination` exists, CheckpointError for a damaged checkpoint.
    """
    if destination.exists():
        raise ConfigError(f"destination {destination} exists: remove it or name another folder")
    config = RunConfig.model_validate(read_trainer_state(checkpoint)["config"])
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        alone = config.parallel.model_copy(update={"tp": 1, "pp": 1, "sequence_parallel": False})
        config = config.model_copy(update={"parallel": alone})
    parallel = init_parallel(config.parallel)
    try:
        learner = Learner(config, parallel)
        load_checkpoint(checkpoint, model=learner.model, optimizer=learner.optimizer)
        learner.export_hf(destination)
    finally:
        destroy_parallel()
    return destination
