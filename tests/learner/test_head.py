"""The fused head gives the gradients of the unfused one, tied and untied, under every kind of model parallelism."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrl.config import ConfigError, ParallelConfig, load_config
from pyrl.data.packing import pack
from pyrl.learner.learner import Learner
from pyrl.learner.parallel import Parallel, destroy_parallel, init_parallel
from pyrl.types import PackedBatch
from tests.learner.tiny import random_sequences, run_config, save_tiny_model
from tests.ops.gloo import run_on_ranks

RELATIVE = 5e-6
"""Of a gradient, by its norm: fp32 sums in another order, twice over for logits that are computed again."""
FUSED = {"lm_head": "fused"}


@pytest.fixture(scope="module")
def parallel() -> Iterator[Parallel]:
    yield init_parallel(ParallelConfig())
    destroy_parallel()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("heads")
    save_tiny_model("qwen2", root / "tied", tied=True)
    save_tiny_model("llama", root / "untied", tied=False)
    return {name: str(root / name) for name in ("tied", "untied")}


def objective(batch: PackedBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> Any:
    loss = (batch.response_mask * (-batch.advantages * logprobs - 0.3 * entropy)).sum() / 100
    return loss, {"logprobs": logprobs, "entropy": entropy}


def measure(parallel: Parallel, model: str, lm_head: str, **layout: Any) -> dict[str, Any]:
    """Of one update on two micro-batches: gradients of this rank, outputs, scores before, parameters after."""
    learner = Learner(
        run_config(
            Path(model),
            model={"lm_head": lm_head},
            parallel={"tp": parallel.tp_size, "pp": parallel.pp_size, **layout},
            optimizer={"lr": 1e-3, "eps": 1e-5, "clip_grad": 0.0},
        ),
        parallel,
    )
    batches = [pack(random_sequences(5, seed=seed), pad_multiple=learner.pad_multiple) for seed in (1, 2)]
    scores = learner.score(batches)
    result = learner.update(batches, objective)
    return {
        "gradients": {name: p.main_grad.clone() for name, p in learner.model.named_parameters()},
        "grad_norm": result.grad_norm,
        "outputs": [output["logprobs"] for output in result.outputs] + [o["entropy"] for o in result.outputs],
        "scores": [score.logprobs for score in scores] + [score.entropy for score in scores],
        "parameters": {name: tensor.clone() for name, tensor in learner.hf_weights()},
    }


def assert_same(fused: dict[str, Any], unfused: dict[str, Any]) -> None:
    for what in ("outputs", "scores"):
        for got, want in zip(fused[what], unfused[what], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert fused["grad_norm"] == pytest.approx(unfused["grad_norm"], rel=RELATIVE)
    for what, relative in (("gradients", RELATIVE), ("parameters", 1e-5)):
        assert fused[what].keys() == unfused[what].keys()
        for name, want in unfused[what].items():
            assert want.norm() > 0, f"{what} {name}: nothing to compare"
            error = (fused[what][name] - want).norm() / want.norm()
            assert error <= relative, f"{what} {name}: relative error {error}"


def on_ranks(folders: dict[str, str], tp: int, pp: int, cases: list[tuple[str, dict[str, Any]]]) -> Any:
    parallel = init_parallel(ParallelConfig(tp=tp, pp=pp))
    return [
        {head: measure(parallel, folders[model], head, **layout) for head in ("fused", "unfused")}
        for model, layout in cases
    ]


@pytest.mark.parametrize("model", ["tied", "untied"])
def test_one_rank(folders: dict[str, str], parallel: Parallel, model: str) -> None:
    assert_same(measure(parallel, folders[model], "fused"), measure(parallel, folders[model], "unfused"))


TP = [("tied", {}), ("tied", {"sequence_parallel": True}), ("untied", {"sequence_parallel": True})]
PP = [("tied", {}), ("untied", {})]


@pytest.mark.parametrize(
    ("tp", "pp", "cases"),
    [(2, 1, TP), (1, 2, PP), pytest.param(2, 2, TP[1:], marks=pytest.mark.slow)],
    ids=["tp2", "pp2", "tp2 pp2"],
)
def test_model_parallel(folders: dict[str, str], tp: int, pp: int, cases: list[tuple[str, dict[str, Any]]]) -> None:
    for rank in run_on_ranks(tp * pp, on_ranks, folders, tp, pp, cases):
        for result in rank:
            assert_same(result["fused"], result["unfused"])


def test_parameters_are_those_of_the_unfused_model(folders: dict[str, str], parallel: Parallel) -> None:
    for model in folders.values():
        fused, unfused = (
            Learner(run_config(Path(model), model=section), parallel).model.state_dict() for section in (FUSED, {})
        )
        assert fused.keys() == unfused.keys()
        assert all(torch.equal(fused[name], t) for name, t in unfused.items() if isinstance(t, torch.Tensor))


def test_rounded_logits_are_another_function(folders: dict[str, str], parallel: Parallel) -> None:
    batch = pack(random_sequences(5))
    scores = {}
    for dtype in ("fp32", "bf16"):
        learner = Learner(run_config(Path(folders["tied"]), model=FUSED | {"logits_dtype": dtype}), parallel)
        (scores[dtype],) = learner.score([batch])
    gap = (scores["fp32"].logprobs - scores["bf16"].logprobs).abs().max()
    assert 1e-4 < gap < 0.1


def test_rounded_logits_need_the_fused_head(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model: {path: a, logits_dtype: bf16}\ndata: {path: b}\n")
    with pytest.raises(ConfigError, match="logits_dtype 'bf16' is of the fused head: set lm_head to 'fused'"):
        load_config(tmp_path / "run.yaml")
    assert load_config(tmp_path / "run.yaml", ["model.lm_head=fused"]).model.logits_dtype == "bf16"
