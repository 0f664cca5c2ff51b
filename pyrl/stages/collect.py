"""Collect: prompts -> rollout -> reward -> filter, until the step has its groups."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedTokenizerBase

from pyrl.config import RunConfig
from pyrl.data.cursor import PromptCursor
from pyrl.learner.parallel import Parallel
from pyrl.reward.pool import RewardPool
from pyrl.rollout.filters import keep_informative
from pyrl.stages.engines import Engines, GenerationJob
from pyrl.stages.exchange import gather_from_leaders, share_of
from pyrl.telemetry.timers import Timers
from pyrl.types import Prompt, RolloutGroup, StepRecord


class NoGroupsError(RuntimeError):
    """A step ended without enough groups to train on."""


@dataclass(slots=True)
class Collected:
    """The groups of one step, the same on every rank, and what happened on the way."""

    groups: list[RolloutGroup]
    """Kept groups, in prompt order."""
    judged: list[RolloutGroup] = field(default_factory=list)
    """All graded groups before filtering."""
    groups_failed: int = 0
    refills: int = 0

    def metrics(self) -> StepRecord:
        """The rollout and reward fields of a step's record."""
        completions = [c for g in self.judged for c in g.completions]
        lengths = [len(c.token_ids) for c in completions]
        verdicts = Counter(v.outcome for g in self.judged for v in g.verdicts)
        return {
            "reward_mean": mean_reward(self.judged),
            "reward_mean_kept": mean_reward(self.groups),
            "verdicts_right": verdicts["right"],
            "verdicts_wrong": verdicts["wrong"],
            "verdicts_unjudged": verdicts["unjudged"],
            "response_length_mean": sum(lengths) / len(lengths) if lengths else None,
            "response_length_max": max(lengths, default=None),
            "truncated_fraction": (
                sum(c.finish_reason == "length" for c in completions) / len(completions) if completions else None
            ),
            "response_tokens": sum(lengths),
            "groups_kept": len(self.groups),
            "groups_dropped_uniform": len(self.judged) - len(self.groups),
            "groups_failed": self.groups_failed,
            "refills": self.refills,
        }


def mean_reward(groups: list[RolloutGroup]) -> float | None:
    """Mean over judged completions; None when there are none."""
    rewards = [r for g in groups for r in g.rewards if r is not None]
    return sum(rewards) / len(rewards) if rewards else None


def with_verdict(groups: list[RolloutGroup]) -> list[RolloutGroup]:
    """Groups with at least one completion that could be judged; the others have nothing to train on."""
    return [g for g in groups if any(reward is not None for reward in g.rewards)]


class Collector:
    """Generates and grades the groups of a step. Each data-parallel leader does its own share of the prompts."""

    def __init__(
        self,
        config: RunConfig,
        *,
        engines: Engines,
        pool: RewardPool | None,
        tokenizer: PreTrainedTokenizerBase,
        parallel: Parallel,
        timers: Timers,
    ) -> None:
        """`pool` is None on ranks that lead no replica."""
        self._config = config
        self._engines = engines
        self._pool = pool
        self._tokenizer = tokenizer
        self._parallel = parallel
        self._timers = timers

    def collect(self, prompts: list[Prompt], cursor: PromptCursor, *, step: int, policy_version: int) -> Collected:
        """One step's groups, the same list on every rank. Collective.

        Raises NoGroupsError when fewer groups are left than there are updates.
        """
        wanted = self._config.rollout.prompts_per_step
        sampling = self._config.rollout.dynamic_sampling
        collected, numbered = Collected(groups=[]), 0
        for refill in range(1 + (sampling.max_refills if sampling.enabled else 0)):
            missing = wanted - len(collected.groups)
            if missing == 0:
                break
            asked = list(enumerate((prompts[i] for i in cursor.next(missing)), start=numbered))
            numbered += len(asked)
            groups = self.generate_and_grade(
                asked, self._config.rollout.samples_per_prompt, step=step, policy_version=policy_version
            )
            collected.refills = refill
            collected.judged += groups
            collected.groups_failed += len(asked) - len(groups)
            collected.groups += keep_informative(groups)[0] if sampling.enabled else with_verdict(groups)
        updates = self._config.algorithm.updates_per_rollout
        if len(collected.groups) < updates:
            raise NoGroupsError(
                f"step {step}: {len(collected.groups)} groups are left for {updates} updates after "
                f"{collected.refills} refills ({collected.groups_failed} failed, "
                f"{len(collected.judged) - len(collected.groups)} all right, all wrong, unjudged): the task is too "
                "easy or too hard for this model, or raise rollout.dynamic_sampling.max_refills"
            )
        return collected

    def generate_and_grade(
        self,
        prompts: list[tuple[int, Prompt]],
        samples: int,
        *,
        step: int,
        policy_version: int,
        purpose: Literal["train", "validation"] = "train",
    ) -> list[RolloutGroup]:
        """Graded groups of numbered `prompts` in order, failed ones left out, on every rank. Collective."""
        mine = share_of(prompts, self._parallel) if self._parallel.is_leader else []
        with self._timers.phase("rollout"):
            job = GenerationJob(mine, samples, step=step, policy_version=policy_version, purpose=purpose)
            groups = self._engines.generate(job)
        with self._timers.phase("reward"):
            if groups and self._pool is not None:
                self._grade(groups)
        return gather_from_leaders(groups if self._parallel.is_leader else None, self._parallel)

    def _grade(self, groups: list[RolloutGroup]) -> None:
        flat = [(g, c) for g in groups for c in g.completions]
        texts = self._tokenizer.batch_decode([list(c.token_ids) for _, c in flat], skip_special_tokens=True)
        items = [(text, g.prompt.ground_truth) for text, (g, _) in zip(texts, flat, strict=True)]
        verdicts = self._pool.grade(items)
        for (group, _), verdict in zip(flat, verdicts, strict=True):
            group.verdicts.append(verdict)
