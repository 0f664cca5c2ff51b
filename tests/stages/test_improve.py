"""What is selected, when, and by which log-probs: PolicyImprover on a scripted learner, against the paper's equations.

The scripted learner's log-prob of a token is a function of its uid and of the number of updates done.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch

from pyrl.algorithms.advantage import grpo
from pyrl.config import RunConfig, parse_config
from pyrl.stages.collect import Collected, GroupFacts
from pyrl.stages.improve import PolicyImprover
from pyrl.telemetry.timers import Timers
from pyrl.types import Completion, PackedBatch, Prompt, RolloutGroup, TokenScores, UpdateResult, Verdict
from tests.algorithms import paper

UPDATES, GROUPS, SAMPLES = 3, 7, 4
ONE_MICRO_BATCH, SEVERAL = 10_000, 100
KL_COV = {"name": "kl_cov", "kl_cov_ratio": 0.1}
CLIP_COV = {"name": "clip_cov", "clip_cov_ratio": 0.1, "clip_cov_lb": 0.1, "clip_cov_ub": 1.0}
LOSSES = {"kl_cov": KL_COV, "clip_cov": CLIP_COV}


class Alone:
    """A world of one rank."""

    world_size = dp_size = 1
    dp_rank = rank = 0
    is_leader = True
    dp_group = None
    device = torch.device("cpu")
    timeout = timedelta(seconds=1)


def logprob(uid: int, updates: int) -> float:
    """Different for every token, and moved by each update, for some tokens beyond a clip at 0.2."""
    noise = torch.sin(torch.tensor([float(uid % 10_007), float(uid % 9_973)], dtype=torch.float64) * 78.233)
    return float((-2 + noise[0] + 0.15 * updates * noise[1]).float())


class ScriptedLearner:
    """Keeps the tokens of every pass. `rounding` is what an update's forward pass differs by from a score's."""

    pad_multiple = 1

    def __init__(self, rounding: float = 0.0) -> None:
        self.updates, self.rounding = 0, rounding
        self.scored: list[list[PackedBatch]] = []
        self.updated: list[list[PackedBatch]] = []
        self.gradients: list[dict[int, float]] = []

    def logprobs(self, batch: PackedBatch) -> torch.Tensor:
        values = [logprob(uid, self.updates) if uid >= 0 else 0.0 for uid in batch.token_uids.tolist()]
        return torch.tensor(values)

    def entropy(self, batch: PackedBatch) -> torch.Tensor:
        return 1.0 + self.updates + 0.1 * (batch.token_uids % 7)

    def score(self, batches: list[PackedBatch]) -> list[TokenScores]:
        assert batches
        self.scored.append(batches)
        return [TokenScores(self.logprobs(b), self.entropy(b)) for b in batches]

    def update(self, batches: list[PackedBatch], loss_fn: Any) -> UpdateResult:
        outputs, gradients = [], {}
        for batch in batches:
            logprobs = (self.logprobs(batch) + self.rounding * batch.response_mask).requires_grad_()
            loss, output = loss_fn(batch, logprobs, self.entropy(batch))
            (gradient,) = torch.autograd.grad(loss, logprobs)
            gradients |= dict(zip(batch.token_uids.tolist(), gradient.tolist(), strict=True))
            outputs.append(output)
        self.updated.append(batches)
        self.gradients.append(gradients)
        self.updates += 1
        return UpdateResult(grad_norm=1.0, outputs=outputs)

    def chosen(self) -> list[set[int]]:
        """Of each update, by token uid."""
        return [{u for b in batches for u in b.token_uids[b.selected].tolist()} for batches in self.updated]


def groups() -> list[RolloutGroup]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for number in range(GROUPS):
        lengths = torch.randint(6, 20, (SAMPLES,), generator=generator).tolist()
        completions = [Completion((3,) * n, (-1.0,) * n, "stop", ()) for n in lengths]
        most = "right" if number % 2 else "wrong"
        outcomes = ["right", "wrong", "unjudged" if number == 2 else most, most]
        prompt = Prompt(str(number), (1,) * (1 + number), "", "toy")
        made.append(RolloutGroup(prompt, completions, [Verdict(o, "scripted") for o in outcomes]))
    return made


def improve(loss: dict[str, Any], max_tokens: int, rounding: float = 0.0) -> tuple[ScriptedLearner, dict[str, Any]]:
    config: RunConfig = parse_config(
        {
            "model": {"path": "m"},
            "data": {"path": "d"},
            "loss": loss,
            "algorithm": {"updates_per_rollout": UPDATES},
            "optimizer": {"max_tokens_per_micro_batch": max_tokens},
        }
    )
    learner, collected = ScriptedLearner(rounding), Collected()
    collected.add(groups(), [GroupFacts.of(group, holder=0, kept=True) for group in groups()], dp_rank=0)
    record = PolicyImprover(config, learner, Alone(), Timers()).improve(collected, step=1)
    assert len(learner.updated) == UPDATES
    return learner, record


def mini_batches() -> list[dict[int, float]]:
    """Advantage by token uid, in each of the 3 mini-batches of 2, 2 and 3 groups."""
    parts: list[dict[int, float]] = [{}, {}, {}]
    for number, group in enumerate(groups()):
        part = parts[min(number // 2, 2)]
        for i, (completion, advantage) in enumerate(zip(group.completions, grpo(group.rewards), strict=True)):
            if advantage is not None:
                part |= {((number * SAMPLES + i) << 24) + t: advantage for t in range(len(completion.token_ids))}
    return parts


def covariances(tokens: dict[int, float], updates: int) -> dict[int, float]:
    """Of the tokens of one scope, under the policy after `updates` updates."""
    logprobs = [torch.tensor(logprob(uid, updates), dtype=torch.float64) for uid in tokens]
    return dict(zip(tokens, paper.covariance(logprobs, list(tokens.values()), [True] * len(tokens)), strict=True))


def largest(tokens: dict[int, float], updates: int) -> set[int]:
    """KL-Cov's choice, literally."""
    found = covariances(tokens, updates)
    ranked = sorted(found, key=found.get, reverse=True)
    k = paper.selected_count(0.1, [True] * len(tokens))
    assert found[ranked[k - 1]] > found[ranked[k]] + 1e-6, "a tie: choose other inputs"
    return set(ranked[:k])


def in_band(tokens: dict[int, float], updates: int) -> set[int]:
    """Clip-Cov's candidates, literally."""
    uids, found = list(tokens), covariances(tokens, updates)
    now, old = ([torch.tensor(logprob(u, n), dtype=torch.float64) for u in uids] for n in (updates, 0))
    inside = paper.clip_cov_candidates(
        [found[u] for u in uids], now, old, [tokens[u] for u in uids], [True] * len(uids),
        lower=0.1, upper=1.0, low=0.2, high=0.2,
    )  # fmt: skip
    return {uids[i] for i in inside}


@pytest.mark.parametrize("max_tokens", [ONE_MICRO_BATCH, SEVERAL])
def test_mini_batch_scope_ranks_the_whole_mini_batch_by_its_current_logprobs(max_tokens: int) -> None:
    learner, record = improve(KL_COV, max_tokens)
    wanted = [largest(part, index) for index, part in enumerate(mini_batches())]
    assert learner.chosen() == wanted
    assert wanted != [largest(part, 0) for part in mini_batches()]  # the log-probs did move
    assert record["selected_tokens_updates"] == [len(part) for part in wanted]


@pytest.mark.parametrize("max_tokens", [ONE_MICRO_BATCH, SEVERAL])
def test_rollout_batch_scope_ranks_all_mini_batches_once_by_the_old_logprobs(max_tokens: int) -> None:
    learner, _ = improve(KL_COV | {"cov_scope": "rollout_batch"}, max_tokens)
    parts = mini_batches()
    wanted = largest({uid: advantage for part in parts for uid, advantage in part.items()}, 0)
    assert learner.chosen() == [wanted & part.keys() for part in parts]


def test_micro_batch_scope_ranks_each_micro_batch_alone() -> None:
    learner, _ = improve(KL_COV | {"cov_scope": "micro_batch"}, SEVERAL)
    for index, (part, batches) in enumerate(zip(mini_batches(), learner.updated, strict=True)):
        assert len(batches) > 1
        for batch in batches:
            uids = batch.token_uids[batch.response_mask].tolist()
            chosen = set(batch.token_uids[batch.selected].tolist())
            assert chosen == largest({uid: part[uid] for uid in uids}, index)


def test_clip_cov_draws_from_the_band_of_the_scope_where_the_clip_does_not_bind() -> None:
    learner, _ = improve(CLIP_COV | {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2}, SEVERAL)
    for index, (part, chosen) in enumerate(zip(mini_batches(), learner.chosen(), strict=True)):
        assert chosen < in_band(part, index)
        assert len(chosen) == paper.selected_count(0.1, [True] * len(part)) > 2


@pytest.mark.parametrize("scope", ["mini_batch", "rollout_batch"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_choice_does_not_depend_on_micro_batches(loss: str, scope: str) -> None:
    """In one micro-batch it is made inside the loss, in several ahead of it."""
    one, record_of_one = improve(LOSSES[loss] | {"cov_scope": scope}, ONE_MICRO_BATCH)
    several, record_of_several = improve(LOSSES[loss] | {"cov_scope": scope}, SEVERAL)
    assert [len(batches) for batches in one.updated] == [1, 1, 1]
    assert all(len(batches) > 1 for batches in several.updated)
    assert one.chosen() == several.chosen() and all(one.chosen())
    for alone, among in zip(one.gradients, several.gradients, strict=True):
        assert {u: g for u, g in alone.items() if u >= 0} == {u: g for u, g in among.items() if u >= 0}
    for name, value in record_of_one.items():
        got = record_of_several[name]
        assert got == (None if value is None else pytest.approx(value, rel=1e-6, abs=1e-7)), name  # fp32 sums


def test_chosen_tokens_reach_the_loss() -> None:
    """Clip-Cov takes their gradient; KL-Cov adds coef sign(d) / N from the second update on."""
    clip, _ = improve(CLIP_COV, SEVERAL)
    kl, _ = improve(KL_COV, SEVERAL)
    for index, part in enumerate(mini_batches()):
        for uid, advantage in part.items():
            d = logprob(uid, index) - logprob(uid, 0)
            plain = -advantage * torch.tensor(d).exp().item() / len(part)
            assert clip.gradients[index][uid] == (
                0.0 if uid in clip.chosen()[index] else pytest.approx(plain, rel=1e-5, abs=1e-9)
            )
            penalty = ((d > 0) - (d < 0)) / len(part) if uid in kl.chosen()[index] else 0.0
            assert kl.gradients[index][uid] == pytest.approx(plain + penalty, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(
    ("loss", "max_tokens", "scored"),
    [
        # the first update scores its own mini-batch, unless its tokens are chosen before it
        ({"name": "ppo_clip"}, ONE_MICRO_BATCH, [[1, 2]]),
        ({"name": "ppo_clip"}, SEVERAL, [[1, 2]]),
        (KL_COV, ONE_MICRO_BATCH, [[1, 2]]),
        (KL_COV, SEVERAL, [[0, 1, 2], [1], [2]]),
        (KL_COV | {"cov_scope": "rollout_batch"}, ONE_MICRO_BATCH, [[0, 1, 2]]),
        (KL_COV | {"cov_scope": "micro_batch"}, SEVERAL, [[1, 2]]),
    ],
)
def test_no_forward_pass_more_than_needed(loss: dict[str, Any], max_tokens: int, scored: list[list[int]]) -> None:
    learner, record = improve(loss, max_tokens)
    number = {id(batch): index for index, batches in enumerate(learner.updated) for batch in batches}
    assert [sorted({number[id(batch)] for batch in batches}) for batches in learner.scored] == scored
    every = [uid for part in mini_batches() for uid in part]
    gaps = [abs(-1.0 - logprob(uid, 0)) for uid in every]  # all tokens, by the generating policy, whoever scored them
    assert record["logprob_gap_mean"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-6)
    assert record["logprob_gap_max"] == pytest.approx(max(gaps), rel=1e-6)
    assert record["entropy"] == pytest.approx(sum(1.0 + 0.1 * (uid % 7) for uid in every) / len(every), rel=1e-6)


def test_the_first_update_is_on_policy_whatever_the_scores_round_to() -> None:
    learner, record = improve(KL_COV, SEVERAL, rounding=1e-4)
    first = mini_batches()[0]
    for uid, advantage in first.items():
        assert learner.gradients[0][uid] == pytest.approx(-advantage / len(first), rel=1e-6)  # no penalty, ratio 1
    moved = [
        [logprob(uid, index) - logprob(uid, 0) + 1e-4 * bool(index) for uid in part]
        for index, part in enumerate(mini_batches())
    ]
    ratios = [torch.tensor(part).exp() for part in moved]
    kls = [float((r - 1 - torch.tensor(part)).mean()) for r, part in zip(ratios, moved, strict=True)]
    assert kls[0] == 0 and record["approx_kl"] == pytest.approx(sum(kls) / UPDATES, rel=1e-3)
    assert record["ratio_mean"] == pytest.approx(sum(float(r.mean()) for r in ratios) / UPDATES, rel=1e-5)
    penalties = [
        sum(abs(logprob(u, i) - logprob(u, 0) + 1e-4) for u in chosen) / len(mini_batches()[i]) if i else 0.0
        for i, chosen in enumerate(learner.chosen())
    ]
    assert record["kl_penalty"] == pytest.approx(sum(penalties) / UPDATES, rel=1e-3)


@pytest.mark.parametrize("max_tokens", [ONE_MICRO_BATCH, SEVERAL])
def test_old_logprobs_rank_every_update_by_the_policy_that_generated(max_tokens: int) -> None:
    learner, _ = improve(KL_COV | {"cov_logprobs": "old"}, max_tokens)
    wanted = [largest(part, 0) for part in mini_batches()]
    assert learner.chosen() == wanted != [largest(part, index) for index, part in enumerate(mini_batches())]
    current, _ = improve(KL_COV, max_tokens)
    ahead = max_tokens == SEVERAL  # where the current log-probs cost a forward pass of each later update
    assert len(current.scored) - len(learner.scored) == (UPDATES - 1 if ahead else 0)
