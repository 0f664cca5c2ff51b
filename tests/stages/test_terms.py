"""Losses, aggregations and terms through PolicyImprover on a scripted learner: the same whatever the micro-batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyrl.config import parse_config
from pyrl.stages.collect import Collected, GroupFacts
from pyrl.stages.improve import PolicyImprover
from pyrl.telemetry.timers import Timers
from pyrl.types import PackedBatch, TokenScores
from tests.stages.test_improve import ONE_MICRO_BATCH, SEVERAL, Alone, ScriptedLearner, groups

UPDATES = 3
ALL_TERMS = {"entropy_coef": 0.01, "kl_loss_coef": 0.1, "rollout_is_threshold": 2.0}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gspo": ({"name": "gspo", "clip_ratio_high": 0.02}, {"loss_agg_mode": "seq-mean-token-mean"}),
    "dr_grpo": ({"name": "ppo_clip"}, {"advantage": "dr_grpo", "loss_agg_mode": "seq-mean-token-sum-norm"}),
    "all terms": ({"name": "ratio"}, {"advantage": "reinforce_plus_plus", **ALL_TERMS}),
    "kl_cov on cispo": ({"name": "kl_cov", "kl_cov_ratio": 0.1, "surrogate": {"name": "cispo"}}, {}),
}


class WithReference(ScriptedLearner):
    def score_reference(self, batches: list[PackedBatch]) -> list[TokenScores]:
        """The reference has log-probs 0.1 above the first policy's at odd tokens."""
        first = ScriptedLearner()
        return [TokenScores(first.logprobs(b) + 0.1 * (b.token_uids % 2).abs(), torch.zeros(1)) for b in batches]


def improve(case: str, max_tokens: int) -> tuple[WithReference, dict[str, Any]]:
    loss, algorithm = CASES[case]
    config = parse_config(
        {
            "model": {"path": "m"},
            "data": {"path": "d"},
            "loss": loss,
            "algorithm": {"updates_per_rollout": UPDATES, **algorithm},
            "optimizer": {"max_tokens_per_micro_batch": max_tokens},
        }
    )
    learner, collected = WithReference(), Collected()
    collected.add(groups(), [GroupFacts.of(group, holder=0, kept=True) for group in groups()], dp_rank=0)
    return learner, PolicyImprover(config, learner, Alone(), Timers()).improve(collected, step=1)


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_records_do_not_depend_on_micro_batches(case: str) -> None:
    one, record = improve(case, ONE_MICRO_BATCH)
    several, other = improve(case, SEVERAL)
    assert all(len(a) == 1 < len(b) for a, b in zip(one.updated, several.updated, strict=True))
    for alone, among in zip(one.gradients, several.gradients, strict=True):
        assert {u: g for u, g in among.items() if u >= 0} == pytest.approx(
            {u: g for u, g in alone.items() if u >= 0}, rel=1e-5, abs=1e-9
        )
    for name, value in record.items():
        assert other[name] == (None if value is None else pytest.approx(value, rel=1e-5, abs=1e-7)), name


def test_terms_that_are_off_are_null_and_those_that_are_on_are_not() -> None:
    names = ("entropy_bonus", "reference_kl", "rollout_is_weight_mean", "rollout_is_capped_fraction")
    _, off = improve("gspo", ONE_MICRO_BATCH)
    learner, on = improve("all terms", ONE_MICRO_BATCH)
    assert [off[name] for name in names] == [None] * 4 and on["clip_fraction"] is None
    assert 0 < off["clip_fraction"] < 1 and off["kl_penalty"] is None and off["selected_tokens"] is None
    batches = [b for mini_batch in learner.updated for b in mini_batch]
    policy, reference = WithReference(), learner.score_reference(batches)
    kls = []
    for index, (batch, score) in enumerate(zip(batches, reference, strict=True)):
        policy.updates = index
        d = (policy.logprobs(batch) - score.logprobs)[batch.response_mask].double()
        kls.append((torch.exp(-d) - 1 + d).mean())
    assert on["reference_kl"] == pytest.approx(float(torch.stack(kls).mean()), rel=1e-5)
    assert on["entropy_bonus"] == pytest.approx(0.01 * (on["entropy"] + 1), rel=0.01)  # the script adds 1 an update
    weights = torch.stack([torch.exp(WithReference().logprobs(b) + 1)[b.response_mask].mean() for b in batches])
    assert on["rollout_is_weight_mean"] == pytest.approx(float(weights.mean()), rel=1e-5)  # the rollout said -1
    assert weights.max() < 1 and on["rollout_is_capped_fraction"] == 0
