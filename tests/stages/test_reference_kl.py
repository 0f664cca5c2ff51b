"""Reference KL through the real learner: what the reference is, before and after a resume, under any layout."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.improve_job import make_groups
from tests.learner.checkpoint_job import Layout, run
from tests.learner.tiny import run_config, save_tiny_model

COEF = 0.5
ALGORITHM = {
    "advantage": "reinforce_plus_plus",
    "loss_agg_mode": "seq-mean-token-mean",
    "updates_per_rollout": 2,
    "kl_loss_coef": COEF,
    "entropy_coef": 1e-3,
    "rollout_is_threshold": 2.0,
}


def _improver(folder: Path, layout: Layout, parallel: Any) -> Any:
    from pyrl.learner.learner import Learner
    from pyrl.stages.improve import PolicyImprover
    from pyrl.telemetry.timers import Timers

    config = run_config(
        folder,
        parallel={"tp": layout.tp, "pp": layout.pp},
        algorithm=ALGORITHM,
        loss={"name": "kl_cov", "kl_cov_ratio": 0.05, "surrogate": {"name": "cispo"}},
        optimizer={"lr": 1e-3, "eps": 1e-5, "max_tokens_per_micro_batch": 300},
    )
    return PolicyImprover(config, Learner(config, parallel), parallel, Timers())


def _step(improver: Any, step: int) -> dict[str, Any]:
    from tests.integration.improve_job import _collected

    return improver.improve(_collected(step, improver._parallel), step=step)


def _outcome(improver: Any, record: dict[str, Any]) -> dict[str, Any]:
    learner = improver._learner
    return {"record": record, "parameters": {n: t.clone() for n, t in learner.hf_weights()}}


def _unbroken(improver: Any, root: Path) -> list[dict[str, Any]]:
    from pyrl.learner.checkpoint import save_checkpoint

    learner = improver._learner
    assert learner.reference.bytes == sum(p.numel() * p.element_size() for p in learner.model.parameters())
    outcomes = [_outcome(improver, _step(improver, 1))]
    save_checkpoint(root, 1, model=learner.model, optimizer=learner.optimizer, trainer_state={}, keep_last=1)
    return [*outcomes, _outcome(improver, _step(improver, 2))]


def _resumed(improver: Any, root: Path, late: bool) -> dict[str, Any]:
    """The second step. `late`: with a reference as a resume would get it that copies what the checkpoint holds."""
    from pyrl.learner.checkpoint import load_checkpoint
    from pyrl.learner.reference import FrozenWeights

    learner = improver._learner
    load_checkpoint(root / "step_000001", model=learner.model, optimizer=learner.optimizer)
    if late:
        learner.reference = FrozenWeights(learner.model)
    return _outcome(improver, _step(improver, 2))


def _scores(improver: Any) -> dict[str, torch.Tensor]:
    """Of the policy at the start, of the reference and of the policy after an update, and the weights around a score of
    the reference."""
    from pyrl.data.packing import pack
    from pyrl.types import Sequence

    learner = improver._learner
    batches = [pack([Sequence(0, (1, 2, 3), (4, 5, 6, 7))]), pack([Sequence(1, (9,), (8, 7))])]
    logprobs = lambda scores: torch.cat([s.logprobs for s in scores])  # noqa: E731
    start = logprobs(learner.score(batches))
    _step(improver, 1)
    before = {n: t.clone() for n, t in learner.hf_weights()}
    found = {"start": start, "reference": logprobs(learner.score_reference(batches))}
    assert all(torch.equal(before[n], t) for n, t in learner.hf_weights())
    return found | {"moved": logprobs(learner.score(batches))}


LAYOUTS = {"one": Layout(), "tp2": Layout(tp=2), "pp2": Layout(pp=2), "dp2": Layout(dp=2)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "model"
    save_tiny_model("qwen2", folder)
    return folder


@pytest.fixture(scope="module")
def outcomes(model: Path) -> dict[str, list[dict[str, Any]]]:
    """Of two unbroken steps on rank 0, by layout; the checkpoints lie beside the model."""
    return {
        name: run(layout, _unbroken, model.parent / name, build=functools.partial(_improver, model))[0]
        for name, layout in LAYOUTS.items()
    }


def test_a_resumed_run_continues_to_the_bit_with_the_first_reference(model: Path, outcomes: dict[str, Any]) -> None:
    wanted = outcomes["one"][1]
    root, build = model.parent / "one", functools.partial(_improver, model)
    (resumed,), (late,) = (run(LAYOUTS["one"], _resumed, root, late, build=build) for late in (False, True))
    assert resumed["record"] == wanted["record"]
    for name, tensor in wanted["parameters"].items():
        assert torch.equal(tensor, resumed["parameters"][name]), name
    assert wanted["record"]["reference_kl"] > 1.5 * late["record"]["reference_kl"] > 0


def test_the_reference_is_the_model_as_it_was_loaded(model: Path) -> None:
    (found,) = run(Layout(), _scores, build=functools.partial(_improver, model))
    assert torch.equal(found["reference"], found["start"])
    assert (found["moved"] - found["start"]).abs().max() > 1e-3


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "one"])
def test_steps_do_not_depend_on_the_layout(outcomes: dict[str, Any], name: str) -> None:
    for got, wanted in zip(outcomes[name], outcomes["one"], strict=True):
        for field, value in wanted["record"].items():
            cancels = field.startswith(("loss", "cov"))  # a mean of terms of both signs, of size 1
            scale = {"rel": 1e-5, "abs": 1e-5 if cancels else 1e-9}
            assert got["record"][field] == (None if value is None else pytest.approx(value, **scale)), field
        for tensor, value in wanted["parameters"].items():
            assert (got["parameters"][tensor] - value).norm() <= 1e-5 * value.norm(), tensor


def test_records_hold_the_terms(outcomes: dict[str, Any]) -> None:
    first = outcomes["one"][0]["record"]
    assert 0 < first["entropy_bonus"] < 1e-3 * 6 and first["clip_fraction"] is not None
    assert 0 < first["rollout_is_weight_mean"] <= 2 and 0 <= first["rollout_is_capped_fraction"] <= 1
    assert len(make_groups(1)) == 12
