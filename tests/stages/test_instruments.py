"""The instruments of a step on a scripted learner: against sums over tokens one by one, whatever the micro-batches."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch

from pyrl.algorithms.advantage import grpo
from pyrl.config import parse_config
from pyrl.ops.counter import mix
from pyrl.stages import improve as improve_stage
from pyrl.stages.collect import Collected, GroupFacts
from pyrl.stages.improve import PolicyImprover
from pyrl.stages.instruments import by_difficulty, by_source
from pyrl.stages.selected_sample import draw_seed, selected_row
from pyrl.telemetry.names import DIFFICULTY_BINS, METRICS
from pyrl.telemetry.recorder import checked_record
from pyrl.telemetry.timers import Timers
from pyrl.types import PackedBatch, RolloutGroup, Verdict
from tests.stages import test_improve as scripted
from tests.stages.test_improve import ONE_MICRO_BATCH, SAMPLES, SEVERAL, UPDATES, Alone, logprob

KL_COV = {"name": "kl_cov", "kl_cov_ratio": 0.1}
SEED = 5


def entropy(uid: int, updates: int) -> float:
    return 1.5 + math.sin(uid % 9_973) * (1 - 0.1 * updates)


class Learner(scripted.ScriptedLearner):
    def entropy(self, batch: PackedBatch) -> torch.Tensor:
        return torch.tensor([entropy(uid, self.updates) if uid >= 0 else 0.0 for uid in batch.token_uids.tolist()])


def groups() -> list[RolloutGroup]:
    """Of test_improve, with sources and more accuracies: 1/4, 1/2 and so on, one group all right, one all wrong; token
    ids that tell where they stand."""
    made = scripted.groups()
    for number, outcome in ((3, "right"), (4, "wrong")):
        made[number].verdicts[:] = [Verdict(outcome, "scripted")] * SAMPLES
    for number, group in enumerate(made):
        ids = (7, *range(20, 20 + number))
        group.prompt = replace(group.prompt, id=f"p{number}", source="ab"[number % 2], token_ids=ids)
        group.completions = [
            replace(c, token_ids=tuple(1000 * number + 100 * i + t for t in range(len(c.token_ids))))
            for i, c in enumerate(group.completions)
        ]
    return made


def run(max_tokens: int, *, step: int = 4, every: int = 2, loss: dict[str, Any] = KL_COV) -> tuple[dict, list[dict]]:
    """The record of a step, and its rows of selected tokens."""
    tree = {
        "seed": SEED, "model": {"path": "m"}, "data": {"path": "d"}, "loss": loss,
        "algorithm": {"updates_per_rollout": UPDATES}, "optimizer": {"max_tokens_per_micro_batch": max_tokens},
        "instruments": {"entropy_change_every": every},
    }  # fmt: skip
    collected = Collected()
    collected.add(groups(), [GroupFacts.of(group, holder=0, kept=True) for group in groups()], dp_rank=0)
    improver = PolicyImprover(parse_config(tree), Learner(), Alone(), Timers())
    record = improver.improve(collected, step=step)
    decode = lambda ids: " ".join(map(str, ids))  # noqa: E731
    return record, [selected_row(step, token, collected, decode) for token in improver.selected_sample]


def responses() -> list[tuple[int, float, list[int]]]:
    """(group, advantage, token uids) of each response that is trained on."""
    return [
        (number, advantage, [((number * SAMPLES + i) << 24) + t for t in range(len(completion.token_ids))])
        for number, group in enumerate(groups())
        for i, (completion, advantage) in enumerate(zip(group.completions, grpo(group.rewards), strict=True))
        if advantage is not None
    ]


def accuracy(number: int) -> float:
    return fmean(reward for reward in groups()[number].rewards if reward is not None)


def in_bin(label: str, number: int) -> bool:
    if label in ("0", "1"):
        return accuracy(number) == float(label)
    low, high = (float(text.strip("(])")) for text in label.split(","))
    return low < accuracy(number) and (accuracy(number) <= high if label.endswith("]") else accuracy(number) < high)


def mean_covariance(items: list[tuple[int, float, float]]) -> float:
    """Of (group, x, y), centred in each group."""
    of_group: dict[int, list] = defaultdict(list)
    for number, x, y in items:
        of_group[number].append((x, y))
    return fmean(
        (x - fmean(p for p, _ in pairs)) * (y - fmean(q for _, q in pairs))
        for pairs in of_group.values() for x, y in pairs
    )  # fmt: skip


@pytest.mark.parametrize("max_tokens", [ONE_MICRO_BATCH, SEVERAL])
def test_a_step_with_a_measurement_equals_the_sums_over_its_tokens(max_tokens: int) -> None:
    record, _ = run(max_tokens)
    every = responses()
    change = lambda uid: entropy(uid, UPDATES) - entropy(uid, 0)  # noqa: E731
    tokens = [uid for _, _, uids in every for uid in uids]
    assert record["entropy_change_measured"] == pytest.approx(fmean(map(change, tokens)), rel=1e-5)
    assert record["entropy_change_response_mean"] == pytest.approx(
        fmean(fmean(map(change, uids)) for _, _, uids in every), rel=1e-5
    )
    numbers = range(len(groups()))
    parts = {"source": {s: [n for n in numbers if n % 2 == i] for i, s in enumerate("ab")},
             "difficulty": {b: [n for n in numbers if in_bin(b, n)] for b in DIFFICULTY_BINS}}  # fmt: skip
    assert sorted(n for part in parts["difficulty"].values() for n in part) == list(numbers)
    assert sum(map(bool, parts["difficulty"].values())) >= 4
    for kind, of_label in parts.items():
        labels = {label: [r for r in every if r[0] in part] for label, part in of_label.items() if part}
        at_start = {label: [[entropy(uid, 0) for uid in uids] for _, _, uids in rs] for label, rs in labels.items()}
        assert record[f"entropy_by_{kind}"] == pytest.approx(
            {label: fmean(h for hs in rows for h in hs) for label, rows in at_start.items()}, rel=1e-6
        )
        assert record[f"entropy_response_mean_by_{kind}"] == pytest.approx(
            {label: fmean(map(fmean, rows)) for label, rows in at_start.items()}, rel=1e-6
        )
    check_covariances(record, every, {b: part for b, part in parts["difficulty"].items() if part})


def check_covariances(record: dict, every: list, bins: dict[str, list[int]]) -> None:
    logps = [(n, a, [logprob(uid, 0) for uid in uids]) for n, a, uids in every]
    levels = {
        "token": [(n, logp, a) for n, a, row in logps for logp in row],
        "response": [(n, fmean(row), a) for n, a, row in logps],
    }
    for level, items in levels.items():
        for name, weigh in (("logp_adv", lambda _: 1.0), ("logp_pi_adv", math.exp)):
            pairs = [(n, x, weigh(x) * a) for n, x, a in items]
            field = f"cov_{level}_{name}"
            assert abs(mean_covariance(pairs)) > 5e-5
            assert record[field] == pytest.approx(mean_covariance(pairs), rel=1e-5, abs=1e-9)
            wanted = {b: mean_covariance([p for p in pairs if p[0] in part]) for b, part in bins.items()}
            assert record[f"{field}_by_difficulty"] == pytest.approx(wanted, rel=1e-5, abs=1e-9)
    assert record["cov_token_logp_adv_by_difficulty"]["1"] == 0 != record["cov_token_logp_adv"]


@pytest.mark.parametrize(("step", "every", "measured"), [(4, 2, True), (4, 1, True), (5, 2, False), (4, 0, False)])
def test_entropy_change_is_measured_in_the_steps_that_are_due(step: int, every: int, measured: bool) -> None:
    record, _ = run(SEVERAL, step=step, every=every)
    assert (record["entropy_change_measured"] is not None) == measured
    assert (record["entropy_change_by_difficulty"] is not None) == measured
    assert record["cov_response_logp_pi_adv"] is not None and record["entropy_by_difficulty"]
    checked_record(record | {"step": step})
    assert set(record) <= set(METRICS)


def test_quadrants_are_means_over_updates() -> None:
    one, _ = run(ONE_MICRO_BATCH)
    several, _ = run(SEVERAL)
    names = [name for name in one if name.startswith("covariance_share_")]
    assert sum(one[name] for name in names) == pytest.approx(1) and len(names) == 4
    assert [several[n] for n in names] == pytest.approx([one[n] for n in names], rel=1e-9)


@pytest.mark.parametrize("scope", ["mini_batch", "rollout_batch"])
def test_the_sample_of_chosen_tokens_does_not_depend_on_micro_batches(scope: str) -> None:
    (_, one), (_, several) = (run(m, loss=KL_COV | {"cov_scope": scope}) for m in (ONE_MICRO_BATCH, SEVERAL))
    assert one == several and len(one) == improve_stage.SELECTED_PER_STEP
    assert len({row["update"] for row in one}) > 1


def test_the_sample_says_what_was_chosen_and_is_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    _, shown = run(SEVERAL)
    monkeypatch.setattr(improve_stage, "SELECTED_PER_STEP", 10_000)
    record, every = run(SEVERAL)
    assert len(every) == record["selected_tokens"] > len(shown)
    uid = lambda row: ((int(row["prompt_id"][1:]) * SAMPLES + row["response"]) << 24) + row["position"]  # noqa: E731
    keys = {mix(draw_seed(SEED, 4), uid(row)): row for row in every}
    assert [keys[key] for key in sorted(keys)] == every and every[: len(shown)] == shown
    means = {n: (fmean(x), fmean(a)) for n in range(UPDATES) for x, a in [zip(*of_update(n), strict=True)]}
    for row in every:
        number, place = int(row["prompt_id"][1:]), row["response"]
        group = groups()[number]
        response = group.completions[place].token_ids
        logp, advantage = logprob(uid(row), row["update"]), grpo(group.rewards)[place]
        assert row["token_id"] == response[row["position"]] and row["text"] == str(row["token_id"])
        assert row["before"] == " ".join(map(str, response[max(0, row["position"] - 8) : row["position"]]))
        assert row["prompt"] == " ".join(map(str, group.prompt.token_ids)) and row["source"] == group.prompt.source
        assert row["probability"] == pytest.approx(math.exp(logp), rel=1e-6)
        assert row["advantage"] == pytest.approx(advantage, rel=1e-6)
        mean_logp, mean_advantage = means[row["update"]]
        covariance = (logp - mean_logp) * (advantage - mean_advantage)
        assert row["covariance"] == pytest.approx(covariance, rel=1e-4) and row["kind"] == "selected_token"


def of_update(update: int) -> list[tuple[float, float]]:
    """(log-prob, advantage) of the tokens of a mini-batch: 2, 2 and 3 groups."""
    return [(logprob(uid, update), a) for n, a, uids in responses() if min(n // 2, 2) == update for uid in uids]


def test_a_loss_that_chooses_nothing_shows_nothing() -> None:
    assert run(SEVERAL, loss={"name": "ppo_clip"})[1] == []
    assert run(SEVERAL, loss=KL_COV | {"kl_cov_ratio": 0.0})[1] == []


def test_accuracies_fall_into_their_bins() -> None:
    def facts(right: int, wrong: int, unjudged: int = 0) -> GroupFacts:
        verdicts = ("right",) * right + ("wrong",) * wrong + ("unjudged",) * unjudged
        return GroupFacts(0, "p", "s", 1, (1,) * len(verdicts), 0, 0, verdicts, (), (), kept=True)

    wanted = {
        "0": [facts(0, 8), facts(0, 1, 3)],
        "(0, 0.25]": [facts(1, 1000), facts(1, 3), facts(2, 6)],
        "(0.25, 0.5]": [facts(26, 74), facts(1, 1), facts(1, 1, 6)],
        "(0.5, 0.75]": [facts(51, 49), facts(3, 1)],
        "(0.75, 1)": [facts(76, 24), facts(1000, 1)],
        "1": [facts(8, 0), facts(1, 0, 7)],
    }
    assert tuple(wanted) == DIFFICULTY_BINS
    flat = [g for part in wanted.values() for g in part]
    for label, mask in by_difficulty(flat).items():
        assert [g for g, inside in zip(flat, mask, strict=True) if inside] == wanted[label]
    assert {s: m.tolist() for s, m in by_source([replace(flat[0], source=s) for s in "bab"]).items()} == {
        "a": [False, True, False], "b": [True, False, True]}  # fmt: skip
