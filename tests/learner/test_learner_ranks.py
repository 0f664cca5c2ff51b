"""What goes wrong on one rank is an error on every rank, by name, in real gloo processes."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrl.config import ParallelConfig
from pyrl.data.packing import pack
from pyrl.types import PackedBatch
from tests.learner.tiny import random_sequences, run_config, save_tiny_model
from tests.ops.gloo import run_on_ranks


def _outcome(call: Callable[[], Any]) -> str:
    try:
        call()
    except (RuntimeError, ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def _two_replicas(model: str, target: str) -> dict[str, str]:
    from pyrl.learner.learner import Learner
    from pyrl.learner.parallel import init_parallel

    parallel = init_parallel(ParallelConfig())
    learner = Learner(run_config(Path(model)), parallel)
    batch = pack(random_sequences(4, seed=parallel.rank))

    def loss(batch: PackedBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> Any:
        bad = float("nan") if parallel.rank == 1 else 1.0
        return logprobs.sum() * bad, {}

    before = [tensor.clone() for _, tensor in learner.hf_weights()]
    outcomes = {
        "nan": _outcome(lambda: learner.update([batch], loss)),
        "counts": _outcome(lambda: learner.update([batch] * (1 + parallel.rank), loss)),
        "scores": _outcome(lambda: learner.score([batch] * (1 + parallel.rank))),
    }
    if parallel.rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    outcomes["export"] = _outcome(lambda: learner.export_hf(target))
    if parallel.rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    same = all(torch.equal(b, t) for b, (_, t) in zip(before, learner.hf_weights(), strict=True))
    return outcomes | {"unchanged": str(same)}


def _sequence_parallel(model: str) -> tuple[int, str]:
    from pyrl.learner.learner import Learner
    from pyrl.learner.parallel import init_parallel

    parallel = init_parallel(ParallelConfig(tp=2))
    learner = Learner(run_config(Path(model), parallel={"tp": 2, "sequence_parallel": True}), parallel)
    odd = next(batch for batch in (pack([s]) for s in random_sequences(9)) if len(batch.tokens) % 2)
    return learner.pad_multiple, _outcome(lambda: learner.score([odd]))


def test_one_bad_rank_stops_both(tmp_path: Path) -> None:
    save_tiny_model("qwen2", tmp_path / "model")
    for rank, outcome in enumerate(run_on_ranks(2, _two_replicas, str(tmp_path / "model"), str(tmp_path / "out"))):
        assert outcome["nan"] == "NonFiniteError: loss is nan of micro-batch 0 in update 0, on rank 1"
        assert outcome["counts"].startswith("ValueError: data-parallel ranks hold 1 to 2 micro-batches")
        assert f"(rank {rank}: {rank + 1})" in outcome["counts"]
        assert outcome["scores"] == "no error"
        wanted = (
            "OSError: cannot write .*" if rank == 0 else "RuntimeError: export to .*out failed on rank 0: cannot write"
        )
        assert re.match(wanted, outcome["export"])
        assert outcome["unchanged"] == "True"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_sequence_parallelism_wants_padding(tmp_path: Path) -> None:
    save_tiny_model("qwen2", tmp_path)
    for multiple, outcome in run_on_ranks(2, _sequence_parallel, str(tmp_path)):
        assert multiple == 2
        assert re.match(r"ValueError: micro_batches\[0\] has \d+ tokens, wanted .* multiple of pad_multiple 2", outcome)


@pytest.mark.slow
def test_a_loss_that_fails_on_one_pipeline_stage_ends_the_job(tmp_path: Path) -> None:
    """The other stage waits for a gradient, far within its deadline of 600 s; the launcher ends it."""
    save_tiny_model("qwen2", tmp_path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    root = Path(__file__).parents[2]
    job = subprocess.run(
        [*launch, str(root / "tests/learner/raising_job.py"), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    ended = time.time()
    failed = re.search(r"\[rank1\]: ValueError: this loss fails, at ([\d.]+)", job.stderr)
    assert job.returncode != 0 and failed, job.stderr[-3000:]
    assert ended - float(failed.group(1)) < 60
    assert re.search(r"Root Cause.*\n.*\n.*\n.*\n *rank +: 1 ", job.stderr), job.stderr[-3000:]
