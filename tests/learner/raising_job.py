"""A loss function that fails on the last of two pipeline stages: torchrun ... raising_job.py MODEL."""

import sys
import time
from pathlib import Path
from typing import Any

import torch

from pyrl.config import ParallelConfig
from pyrl.data.packing import pack
from pyrl.learner.learner import Learner
from pyrl.learner.parallel import init_parallel
from pyrl.types import PackedBatch
from tests.learner.tiny import random_sequences, run_config


def fail(batch: PackedBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> Any:
    raise ValueError(f"this loss fails, at {time.time()}")


def main(model: str) -> None:
    parallel = init_parallel(ParallelConfig(pp=2))
    learner = Learner(run_config(Path(model), parallel={"pp": 2}), parallel)
    learner.update([pack(random_sequences(4))] * 2, fail)


if __name__ == "__main__":
    main(sys.argv[1])
