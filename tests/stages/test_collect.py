"""Filling a step with groups: refills, failed and unjudged groups. The engine and the grader are scripted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pyrl.config import RunConfig, parse_config
from pyrl.data.cursor import PromptCursor
from pyrl.stages.collect import Collected, Collector, NoGroupsError
from pyrl.stages.engines import GenerationJob
from pyrl.telemetry.timers import Timers
from pyrl.types import Completion, Prompt, RolloutGroup, Verdict

PROMPTS = [Prompt(str(i), (i + 1, 2), str(i), "toy") for i in range(40)]


class Alone:
    """A world of one rank."""

    world_size = dp_size = 1
    dp_rank = rank = 0
    is_leader = True


class ScriptedEngine:
    """Answers every prompt but those in `failing`; keeps the numbers it was asked with."""

    def __init__(self, failing: set[str]) -> None:
        self.failing, self.jobs = failing, []

    def wait_for_leaders(self, step: int) -> None:
        """There are no others."""

    def generate(self, job: GenerationJob) -> list[RolloutGroup]:
        self.jobs.append(job)
        completion = Completion((5, 1), (-0.1, -0.2), "stop", ())
        return [RolloutGroup(p, [completion] * job.samples) for _, p in job.prompts if p.id not in self.failing]


class ScriptedGrader:
    def __init__(self, outcome: Callable[[int, int], str]) -> None:
        self.outcome, self.seen = outcome, {}

    def grade(self, items: list[tuple[str, str]]) -> list[Verdict]:
        verdicts = []
        for _, truth in items:
            sample = self.seen[truth] = self.seen.get(truth, -1) + 1
            verdicts.append(Verdict(outcome := self.outcome(int(truth), sample), f"said_{outcome}: {truth}"))
        return verdicts


class Tokenizer:
    def batch_decode(self, ids: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return ["text"] * len(ids)


def collector(outcome: Callable[[int, int], str], failing: set[str] = frozenset(), **rollout: object) -> Collector:
    sampling = rollout.pop("dynamic_sampling", {})
    tree = {
        "model": {"path": "m"},
        "data": {"path": "d"},
        "algorithm": {"updates_per_rollout": 2},
        "rollout": {"prompts_per_step": 6, "samples_per_prompt": 2, "dynamic_sampling": sampling} | rollout,
    }
    config: RunConfig = parse_config(tree)
    made = Collector(
        config,
        engines=ScriptedEngine(failing),
        pool=ScriptedGrader(outcome),
        tokenizer=Tokenizer(),
        parallel=Alone(),
        timers=Timers(),
    )
    return made


def run(made: Collector):
    cursor = PromptCursor(len(PROMPTS), seed=0, shuffle=False)
    return made.collect(PROMPTS, cursor, step=1, policy_version=0), cursor


def mixed_if_even(prompt: int, sample: int) -> str:
    return "right" if prompt % 2 == 0 and sample == 0 else "wrong"


def test_refills_until_every_group_carries_a_signal() -> None:
    made = collector(mixed_if_even, dynamic_sampling={"enabled": True, "max_refills": 4})
    collected, cursor = run(made)
    assert [g.prompt.id for _, g in collected.kept] == ["0", "2", "4", "6", "8", "10"]
    assert collected.refills == 3 and cursor.consumed == 11  # 6 + 3 + 1 + 1, each time what is missing
    numbers = [number for job in made._engines.jobs for number, _ in job.prompts]
    assert numbers == list(range(11))  # seeds depend on these: no number twice in a step


def test_reward_before_filtering_counts_dropped_groups() -> None:
    made = collector(mixed_if_even, dynamic_sampling={"enabled": True, "max_refills": 4})
    metrics = run(made)[0].metrics()
    assert metrics["reward_mean"] == 6 / 22 and metrics["reward_mean_kept"] == 0.5
    assert metrics["groups_dropped_uniform"] == 5 and metrics["groups_kept"] == 6


def test_without_dynamic_sampling_uniform_groups_stay() -> None:
    collected, cursor = run(collector(lambda prompt, sample: "wrong"))
    assert len(collected.kept) == 6 and cursor.consumed == 6 and collected.refills == 0


def test_failed_groups_are_counted_and_left_out() -> None:
    collected, _ = run(collector(mixed_if_even, failing={"1", "4"}))
    assert [g.prompt.id for _, g in collected.kept] == ["0", "2", "3", "5"]
    assert collected.groups_failed == 2


def test_groups_without_a_verdict_are_left_out_and_unjudged_answers_have_no_reward() -> None:
    def outcome(prompt: int, sample: int) -> str:
        return "unjudged" if prompt == 0 or sample == 1 else "right"

    collected, _ = run(collector(outcome))
    assert [g.prompt.id for _, g in collected.kept] == ["1", "2", "3", "4", "5"]
    metrics = collected.metrics()
    assert metrics["verdicts_unjudged"] == 7 and metrics["reward_mean"] == 1.0
    assert metrics["verdict_reasons"] == {"said_right": 5, "said_unjudged": 7}
    assert metrics["groups_dropped_unjudged"] == 1 and metrics["groups_dropped_uniform"] == 0


def test_dropped_groups_are_counted_by_their_reason() -> None:
    def outcome(prompt: int, sample: int) -> str:
        return "unjudged" if prompt in (1, 3) else mixed_if_even(prompt, sample)

    collected, cursor = run(collector(outcome, dynamic_sampling={"enabled": True, "max_refills": 4}))
    metrics = collected.metrics()
    assert cursor.consumed == 11 and metrics["groups_kept"] == 6
    assert metrics["groups_dropped_unjudged"] == 2 and metrics["groups_dropped_uniform"] == 3


def test_reward_is_split_by_source_before_filtering() -> None:
    """Judged answers alone count; a source without any has no reward."""
    made = collector(mixed_if_even)
    groups = made.generate_and_grade(list(enumerate(PROMPTS[:4])), 2, step=1, policy_version=0)
    facts = made.share_facts(groups)
    assert {f.source for f in facts} == {"toy"}
    sources, rewards = ("b", "a", "b", "c"), ((1.0, 0.0), (1.0, None), (0.0, 0.0), (None, None))
    facts = [replace(f, source=s, rewards=r, kept=False) for f, s, r in zip(facts, sources, rewards, strict=True)]
    record = Collected(facts=facts, held=groups).metrics()
    assert record["reward_by_source"] == {"a": 1.0, "b": 0.25, "c": None} and record["reward_mean"] == 0.4


def test_too_few_groups_stop_the_run_with_the_cause_of_each() -> None:
    """A remedy stands beside its own cause alone."""
    sampling = {"enabled": True, "max_refills": 2}
    with pytest.raises(NoGroupsError, match="step 1: 0 groups are left for 2 updates") as caught:
        run(collector(lambda p, s: "wrong", dynamic_sampling=sampling))
    said = str(caught.value)
    assert "18 were all right or all wrong (reward 0), after 2 refills" in said and "max_refills, now 2" in said
    assert "judged" not in said and "server" not in said

    with pytest.raises(NoGroupsError) as caught:
        run(collector(lambda p, s: "unjudged"))
    said = str(caught.value)
    assert "6 could not be judged (said_unjudged 12 times)" in said and "reward.timeout_seconds" in said
    assert "too easy" not in said and "max_refills" not in said

    with pytest.raises(NoGroupsError) as caught:
        run(collector(mixed_if_even, failing={str(i) for i in range(6)}))
    said = str(caught.value)
    assert "6 got no answer from a server" in said and "judged" not in said and "max_refills" not in said


def test_samples_for_the_record_are_of_the_first_kept_groups() -> None:
    made = collector(mixed_if_even, dynamic_sampling={"enabled": True, "max_refills": 4})
    shown = made.first_samples(run(made)[0], 3)
    assert [g.prompt.id for g in shown] == ["0", "2", "4"]
    assert [(len(g.completions), [v.outcome for v in g.verdicts]) for g in shown] == [(1, ["right"])] * 3


def test_what_other_leaders_hold_is_known_by_its_facts_alone() -> None:
    made = collector(mixed_if_even)
    groups = made.generate_and_grade(list(enumerate(PROMPTS[:2])), 2, step=1, policy_version=0)
    own = made.share_facts(groups)
    theirs = [replace(facts, holder=1, rewards=(1.0, 1.0), truncated=1, response_tokens=(7, 3)) for facts in own]
    collected = Collected()
    collected.add(groups, own + theirs, dp_rank=0)
    assert [group.prompt.id if group else None for _, group in collected.kept] == ["0", "1", None, None]
    metrics = collected.metrics()
    assert metrics["reward_mean"] == 5 / 8 and metrics["groups_kept"] == 4
    assert metrics["response_length_max"] == 7 and metrics["response_tokens"] == 4 * 2 + 2 * 10
    assert metrics["truncated_fraction"] == 2 / 8
