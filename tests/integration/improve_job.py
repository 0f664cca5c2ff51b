"""PolicyImprover under one layout: two rollout batches, the same whatever the ranks, and which tokens it chose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from pyrl.types import Completion, Prompt, RolloutGroup, Verdict
from tests.learner.tiny import random_sequences, run_config

STEPS, UPDATES, GROUPS, SAMPLES = 2, 3, 12, 4
METHODS: dict[str, dict[str, Any]] = {
    "kl_cov": {"name": "kl_cov", "kl_cov_ratio": 0.05},
    "clip_cov": {"name": "clip_cov", "clip_cov_ratio": 0.05, "clip_cov_lb": 0.3, "clip_cov_ub": 4.0},
}


@dataclass(frozen=True)
class Choice:
    """One selection as one rank saw it: its valid tokens."""

    covariance: dict[int, float]
    """By token uid."""
    chosen: frozenset[int]


def run_methods(model: str, layout: dict[str, Any], max_tokens: int, parallel: Any) -> dict[str, dict[str, Any]]:
    """By method: the records of the steps, the choices of the updates and the parameters in the end."""
    return {name: _run(model, loss, layout, max_tokens, parallel) for name, loss in METHODS.items()}


def _run(model: str, loss: dict[str, Any], layout: dict[str, Any], max_tokens: int, parallel: Any) -> dict[str, Any]:
    from pyrl.learner.learner import Learner
    from pyrl.stages import improve
    from pyrl.telemetry.timers import Timers

    config = run_config(
        Path(model),
        parallel=layout,
        loss=loss,
        instruments={"entropy_change_every": 1},
        algorithm={"updates_per_rollout": UPDATES},
        # Under Adam's usual eps an element whose gradient is mere rounding makes a step of full size.
        optimizer={"lr": 1e-3, "eps": 1e-5, "max_tokens_per_micro_batch": max_tokens},
    )
    learner = Learner(config, parallel)
    improver = improve.PolicyImprover(config, learner, parallel, Timers())
    choices: list[Choice] = []
    shown = []
    select = improve.select_tokens

    def spy(loss: Any, covariance: Any, logprobs: Any, old: Any, advantages: Any, mask: Any, uids: Any, **rest: Any):
        chosen = select(loss, covariance, logprobs, old, advantages, mask, uids, **rest)
        found = dict(zip(uids[mask].tolist(), covariance[mask].tolist(), strict=True))
        choices.append(Choice(found, frozenset(uids[chosen].tolist())))
        return chosen

    with mock.patch.object(improve, "select_tokens", spy):
        records = []
        for step in range(1, STEPS + 1):
            records.append(improver.improve(_collected(step, parallel), step=step))
            shown.append(improver.selected_sample)
    parameters = {name: tensor.clone() for name, tensor in learner.hf_weights()}
    return {"records": records, "choices": choices, "parameters": parameters, "shown": shown}


def _collected(step: int, parallel: Any) -> Any:
    """The groups of a step as the collector hands them on: each leader has its own share."""
    from pyrl.stages.collect import Collected, GroupFacts
    from pyrl.stages.exchange import gather_from_leaders, share_of

    own = share_of(make_groups(step), parallel) if parallel.is_leader else []
    facts = [GroupFacts.of(group, holder=parallel.dp_rank, kept=True) for group in own]
    collected = Collected()
    collected.add(own, gather_from_leaders(facts if parallel.is_leader else None, parallel), parallel.dp_rank)
    return collected


def make_groups(seed: int) -> list[RolloutGroup]:
    """Random responses and verdicts, one in each group right and one wrong; some could not be judged."""
    generator = torch.Generator().manual_seed(seed)
    sequences = iter(random_sequences(GROUPS * SAMPLES, seed=seed))
    groups = []
    for number in range(GROUPS):
        own = [next(sequences) for _ in range(SAMPLES)]
        completions = [Completion(s.response_ids, (-1.0,) * len(s.response_ids), "stop", ()) for s in own]
        drawn = torch.randint(0, 3, (SAMPLES - 2,), generator=generator).tolist()
        outcomes = ["right", "wrong", *(("right", "wrong", "unjudged")[i] for i in drawn)]
        prompt = Prompt(str(number), own[0].prompt_ids, "", "toy")
        groups.append(RolloutGroup(prompt, completions, [Verdict(outcome, "made up") for outcome in outcomes]))
    return groups
