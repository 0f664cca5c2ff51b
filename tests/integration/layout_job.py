"""The learner under one layout, for the layout tests: the same three updates, whatever the ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pyrl.config import ParallelConfig
from pyrl.data.packing import pack, plan_micro_batches
from pyrl.types import PackedBatch
from tests.integration.improve_job import run_methods
from tests.learner.tiny import random_sequences, run_config

STEPS, SEQUENCES = 3, 24


@dataclass(frozen=True)
class Variant:
    """One learner to run. Those of one job share tp and pp, and so their processes."""

    name: str
    model: str
    tp: int = 1
    pp: int = 1
    sequence_parallel: bool = False
    distributed_optimizer: bool = True
    max_tokens: int = 4000
    recompute: str = "none"
    lm_head: str = "unfused"
    export: str | None = None
    """Write the loaded model back to this folder before the first update."""
    improve: bool = False
    """Also train with each method of `improve_job`."""


def run_variants(variants: list[Variant]) -> dict[str, dict[str, Any]]:
    """On every rank: what each variant measured, by its name."""
    from pyrl.learner.parallel import init_parallel

    torch.set_num_threads(1)
    parallel = init_parallel(ParallelConfig(tp=variants[0].tp, pp=variants[0].pp))
    return {variant.name: _run(variant, parallel) for variant in variants}


def _run(variant: Variant, parallel: Any) -> dict[str, Any]:
    from pyrl.learner.learner import Learner

    config = run_config(
        Path(variant.model),
        model={"recompute": variant.recompute, "lm_head": variant.lm_head},
        parallel={
            "tp": variant.tp,
            "pp": variant.pp,
            "sequence_parallel": variant.sequence_parallel,
            "distributed_optimizer": variant.distributed_optimizer,
        },
        # Under Adam's usual eps an element whose gradient is mere rounding makes a step of full size.
        optimizer={"lr": 1e-3, "weight_decay": 0.1, "eps": 1e-5},
    )
    layout = config.parallel.model_dump(mode="json")
    methods = run_methods(variant.model, layout, variant.max_tokens, parallel) if variant.improve else {}
    learner = Learner(config, parallel)
    if variant.export:
        learner.export_hf(variant.export)
    steps = [_step(learner, parallel, variant, number) for number in range(STEPS)]
    scores = _score(learner, parallel, variant)
    parameters = {name: tensor.clone() for name, tensor in learner.hf_weights()}
    copies = {n: p.detach().clone() for n, p in learner.model.named_parameters() if "embedding" in n or "output" in n}
    return {
        "steps": steps,
        "scores": scores,
        "parameters": parameters,
        "place": (parallel.dp_rank, parallel.pp_rank, parallel.tp_rank),
        "copies": copies,
        "methods": methods,
    }


def _batches(learner: Any, parallel: Any, variant: Variant, seed: int) -> tuple[list[PackedBatch], int]:
    """This rank's micro-batches of step `seed`, and the response tokens of all ranks together."""
    sequences = random_sequences(SEQUENCES, seed=seed)
    plan = plan_micro_batches([len(s) for s in sequences], dp=parallel.dp_size, max_tokens=variant.max_tokens)
    packed = [pack([sequences[i] for i in m], pad_multiple=learner.pad_multiple) for m in plan[parallel.dp_rank]]
    return packed, sum(len(s.response_ids) for s in sequences)


def _step(learner: Any, parallel: Any, variant: Variant, number: int) -> dict[str, float]:
    batches, denominator = _batches(learner, parallel, variant, number)

    def loss(batch: PackedBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> Any:
        per_token = batch.response_mask * (-batch.advantages * logprobs - 0.1 * entropy)
        sums = torch.stack([per_token.sum(), per_token.abs().sum(), (entropy * batch.response_mask).sum()])
        return per_token.sum() / denominator, {"sums": sums.detach(), "logprobs": logprobs}

    result = learner.update(batches, loss)
    assert [len(o["logprobs"]) for o in result.outputs] == [len(b.tokens) for b in batches]
    sums = torch.stack([output["sums"].double() for output in result.outputs]).sum(0)
    dist.all_reduce(sums, group=parallel.dp_group)
    loss_sum, loss_abs, entropy = (sums / denominator).tolist()
    return {"loss": loss_sum, "loss_abs": loss_abs, "entropy": entropy, "grad_norm": result.grad_norm,
            "micro_batches": len(batches)}  # fmt: skip


def _score(learner: Any, parallel: Any, variant: Variant) -> dict[int, tuple[float, float]]:
    """Token uid -> (log-prob, entropy) of this rank's replica."""
    batches, _ = _batches(learner, parallel, variant, 99)
    found = {}
    for batch, score in zip(batches, learner.score(batches), strict=True):
        mask = batch.response_mask
        values = (batch.token_uids[mask], score.logprobs[mask], score.entropy[mask])
        found |= {u: (p, h) for u, p, h in zip(*(v.tolist() for v in values), strict=True)}
    return found
