"""The product's `Learner`, as it wires model and optimizer, resumes to the bit."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrl.learner.checkpoint import load_checkpoint, save_checkpoint
from tests.learner.checkpoint_job import Layout, run
from tests.learner.tiny import random_sequences, run_config, save_tiny_model

STATE = {"step": 2}


def _learner(folder: Path, sequence_parallel: bool, layout: Layout, parallel: Any) -> Any:
    from pyrl.learner.learner import Learner

    sections = {"tp": layout.tp, "pp": layout.pp, "sequence_parallel": sequence_parallel}
    return Learner(run_config(folder, parallel=sections, optimizer={"lr": 1e-2, "weight_decay": 0.1}), parallel)


def _train(learner: Any, first: int, count: int) -> list[float]:
    from pyrl.data.packing import pack, plan_micro_batches

    norms = []
    for number in range(first, first + count):
        sequences = random_sequences(6, seed=number)
        plan = plan_micro_batches([len(s) for s in sequences], dp=learner.parallel.dp_size, max_tokens=100)
        mine = plan[learner.parallel.dp_rank]
        batches = [pack([sequences[i] for i in micro], pad_multiple=learner.pad_multiple) for micro in mine]
        norms.append(learner.update(batches, lambda batch, logprobs, _: (-logprobs.sum() / 100, {})).grad_norm)
    return norms


def _unbroken(learner: Any, root: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    _train(learner, 0, 2)
    for group in learner.optimizer.param_groups:
        group["lr"] = 3e-3  # not the config's: it must come from the checkpoint
    save_checkpoint(root, 2, model=learner.model, optimizer=learner.optimizer, trainer_state=STATE, keep_last=1)
    return _train(learner, 2, 3), dict(learner.model.state_dict())


def _resumed(learner: Any, root: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    folder = root / "step_000002"
    assert load_checkpoint(folder, model=learner.model, optimizer=learner.optimizer) == STATE
    assert {group["lr"] for group in learner.optimizer.param_groups} == {3e-3}
    return _train(learner, 2, 3), dict(learner.model.state_dict())


@pytest.mark.parametrize(
    ("layout", "sequence_parallel"),
    [(Layout(), False), (Layout(dp=2), False), (Layout(tp=2), True), (Layout(pp=2), False)],
    ids=["one", "dp2", "tp2-sp", "pp2"],
)
def test_resume_is_bit_equal(tmp_path: Path, layout: Layout, sequence_parallel: bool) -> None:
    save_tiny_model("qwen2", tmp_path / "model")
    build = functools.partial(_learner, tmp_path / "model", sequence_parallel)
    unbroken = run(layout, _unbroken, tmp_path, build=build)
    resumed = run(layout, _resumed, tmp_path, build=build)
    for rank, ((norms, state), (norms_again, state_again)) in enumerate(zip(unbroken, resumed, strict=True)):
        assert norms == norms_again, f"rank {rank}"
        assert len(set(norms)) == 3
        for name, tensor in state.items():
            assert tensor is None or torch.equal(tensor, state_again[name]), f"rank {rank}: {name}"
