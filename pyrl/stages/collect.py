"""Collect: prompts -> rollout -> reward -> filter, until the step has its groups."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal

from transformers import PreTrainedTokenizerBase

from pyrl.config import DynamicSamplingConfig, RunConfig
from pyrl.data.cursor import PromptCursor
from pyrl.learner.parallel import Parallel
from pyrl.reward.pool import RewardPool
from pyrl.rollout.filters import keep_informative
from pyrl.stages.engines import Engines, GenerationJob
from pyrl.stages.exchange import gather_from_leaders, gather_to_rank_zero, share_of
from pyrl.telemetry.timers import Timers
from pyrl.types import Prompt, RolloutGroup, StepRecord


class NoGroupsError(RuntimeError):
    """A step ended without enough groups to train on."""


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """What every rank knows of a graded group; its tokens are with the leader that generated it."""

    holder: int
    """Data-parallel rank of that leader."""
    prompt_id: str
    source: str
    """Of the prompt."""
    prompt_tokens: int
    response_tokens: tuple[int, ...]
    """Length of each response."""
    truncated: int
    """Responses that reached the token limit."""
    nonfinite_logprobs: int
    """Tokens whose rollout log-prob is not finite."""
    verdicts: tuple[str, ...]
    """Outcome of each response."""
    reasons: tuple[str, ...]
    """Kind of reason of each verdict."""
    rewards: tuple[float | None, ...]
    kept: bool
    """Whether it is trained on."""

    @classmethod
    def of(cls, group: RolloutGroup, *, holder: int, kept: bool) -> GroupFacts:
        return cls(
            holder=holder,
            prompt_id=group.prompt.id,
            source=group.prompt.source,
            prompt_tokens=len(group.prompt.token_ids),
            response_tokens=tuple(len(c.token_ids) for c in group.completions),
            truncated=sum(c.finish_reason == "length" for c in group.completions),
            nonfinite_logprobs=sum(not isfinite(lp) for c in group.completions for lp in c.rollout_logprobs),
            verdicts=tuple(v.outcome for v in group.verdicts),
            reasons=tuple(v.kind for v in group.verdicts),
            rewards=tuple(group.rewards),
            kept=kept,
        )


@dataclass(slots=True)
class Collected:
    """The graded groups of one step, in prompt order, and what happened on the way.

    Everything but `held` is the same on every rank.
    """

    facts: list[GroupFacts] = field(default_factory=list)
    """All graded groups, before filtering."""
    held: list[RolloutGroup | None] = field(default_factory=list)
    """Beside `facts`: the group, where this rank is the leader that generated it."""
    groups_failed: int = 0
    refills: int = 0

    def add(self, groups: list[RolloutGroup], facts: list[GroupFacts], dp_rank: int) -> None:
        """Append the `facts` of every leader's groups. `groups`: this leader's own; a rank that leads none gives []."""
        own = iter(groups)
        self.facts += facts
        self.held += [next(own) if groups and f.holder == dp_rank else None for f in facts]

    @property
    def kept(self) -> list[tuple[GroupFacts, RolloutGroup | None]]:
        """The groups that are trained on, with their tokens where this rank holds them."""
        return [(f, group) for f, group in zip(self.facts, self.held, strict=True) if f.kept]

    @property
    def kept_samples(self) -> list[tuple[int, int]]:
        """(place in `kept`, place in its group) of each `Sequence.sample_index`, unjudged ones included."""
        return [(place, i) for place, (facts, _) in enumerate(self.kept) for i in range(len(facts.rewards))]

    def metrics(self) -> StepRecord:
        """The rollout and reward fields of a step's record."""
        lengths = [n for f in self.facts for n in f.response_tokens]
        verdicts = Counter(outcome for f in self.facts for outcome in f.verdicts)
        kept = [f for f in self.facts if f.kept]
        unjudged = sum(all(reward is None for reward in f.rewards) for f in self.facts)  # never kept
        return {
            "reward_mean": mean_reward(self.facts),
            "reward_by_source": reward_by_source(self.facts),
            "reward_mean_kept": mean_reward(kept),
            "verdicts_right": verdicts["right"],
            "verdicts_wrong": verdicts["wrong"],
            "verdicts_unjudged": verdicts["unjudged"],
            "verdict_reasons": count_reasons(self.facts),
            "response_length_mean": sum(lengths) / len(lengths) if lengths else None,
            "response_length_max": max(lengths, default=None),
            "truncated_fraction": sum(f.truncated for f in self.facts) / len(lengths) if lengths else None,
            "response_tokens": sum(lengths),
            "rollout_logprobs_nonfinite": sum(f.nonfinite_logprobs for f in self.facts),
            "groups_kept": len(kept),
            "groups_dropped_uniform": len(self.facts) - len(kept) - unjudged,
            "groups_dropped_unjudged": unjudged,
            "groups_failed": self.groups_failed,
            "refills": self.refills,
        }


def mean_reward(groups: list[GroupFacts]) -> float | None:
    """Mean over judged completions; None when there are none."""
    rewards = [r for g in groups for r in g.rewards if r is not None]
    return sum(rewards) / len(rewards) if rewards else None


def reward_by_source(groups: list[GroupFacts]) -> dict[str, float | None]:
    """`mean_reward` of the groups of each data source, sources in alphabetical order."""
    sources = sorted({g.source for g in groups})
    return {source: mean_reward([g for g in groups if g.source == source]) for source in sources}


def count_reasons(groups: list[GroupFacts]) -> dict[str, int]:
    """How often the grader gave each reason, in alphabetical order."""
    return dict(sorted(Counter(reason for g in groups for reason in g.reasons).items()))


def has_verdict(group: RolloutGroup) -> bool:
    """Whether a completion could be judged; without one there is nothing to train on."""
    return any(reward is not None for reward in group.rewards)


def explain_missing(collected: Collected, sampling: DynamicSamplingConfig) -> str:
    """Why groups of a step are missing, each cause with what to do about it."""
    unjudged = [f for f in collected.facts if all(reward is None for reward in f.rewards)]
    uniform = len(collected.facts) - len(unjudged) - sum(f.kept for f in collected.facts)
    causes = []
    if collected.groups_failed:
        causes.append(
            f"{collected.groups_failed} got no answer from a server: the log and the servers' logs say why; see "
            "rollout.request_timeout_seconds and rollout.max_retries"
        )
    if unjudged:
        reasons = ", ".join(f"{reason} {count} times" for reason, count in count_reasons(unjudged).items())
        causes.append(
            f"{len(unjudged)} could not be judged ({reasons}): look at the ground truths, reward.task and "
            "reward.timeout_seconds"
        )
    if uniform:
        causes.append(
            f"{uniform} were all right or all wrong (reward {mean_reward(collected.facts):.3g}), after "
            f"{collected.refills} refills: the questions are too easy or too hard for this model; give others, or "
            f"raise rollout.dynamic_sampling.max_refills, now {sampling.max_refills}"
        )
    return ". ".join(causes)


class Collector:
    """Generates and grades the groups of a step. Each data-parallel leader does its own share of the prompts and keeps
    their tokens; the others learn the facts."""

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
        """One step's groups. Collective.

        Raises NoGroupsError, on every rank, when fewer groups are left than there are updates.
        """
        wanted = self._config.rollout.prompts_per_step
        sampling = self._config.rollout.dynamic_sampling
        collected, numbered, kept = Collected(), 0, 0
        for refill in range(1 + (sampling.max_refills if sampling.enabled else 0)):
            missing = wanted - kept
            if missing == 0:
                break
            asked = list(enumerate((prompts[i] for i in cursor.next(missing)), start=numbered))
            numbered += len(asked)
            groups = self.generate_and_grade(
                asked, self._config.rollout.samples_per_prompt, step=step, policy_version=policy_version
            )
            facts = self.share_facts(groups, informative_only=sampling.enabled)
            collected.add(groups, facts, self._parallel.dp_rank)
            collected.refills = refill
            collected.groups_failed += len(asked) - len(facts)
            kept += sum(f.kept for f in facts)
        updates = self._config.algorithm.updates_per_rollout
        if kept < updates:
            raise NoGroupsError(
                f"step {step}: {kept} groups are left for {updates} updates. {explain_missing(collected, sampling)}"
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
        """Graded groups of this leader's share of the numbered `prompts`, in order, failed ones left out; [] on ranks
        that lead no replica. Every rank calls it."""
        mine = share_of(prompts, self._parallel) if self._parallel.is_leader else []
        with self._timers.phase("rollout"):
            job = GenerationJob(mine, samples, step=step, policy_version=policy_version, purpose=purpose)
            groups = self._engines.generate(job)
        with self._timers.phase("reward"):
            if groups and self._pool is not None:
                self._grade(groups)
        self._engines.wait_for_leaders(step)
        return groups

    def share_facts(self, groups: list[RolloutGroup], *, informative_only: bool = False) -> list[GroupFacts]:
        """Facts of all leaders' groups, in prompt order, on every rank. Collective.

        Kept are groups with a completion that could be judged; with `informative_only` those that carry a signal.
        """
        facts = [
            GroupFacts.of(
                group,
                holder=self._parallel.dp_rank,
                kept=bool(keep_informative([group])[0]) if informative_only else has_verdict(group),
            )
            for group in groups
        ]
        return gather_from_leaders(facts if self._parallel.is_leader else None, self._parallel)

    def first_samples(self, collected: Collected, count: int) -> list[RolloutGroup]:
        """On rank 0 the first `count` kept groups with their first response alone; [] elsewhere. Collective."""
        shown = [
            (place, RolloutGroup(group.prompt, group.completions[:1], group.verdicts[:1]))
            for place, (_, group) in enumerate(collected.kept[:count])
            if group is not None
        ]
        parts = gather_to_rank_zero(shown, self._parallel) or []
        return [group for _, group in sorted((item for part in parts for item in part), key=lambda item: item[0])]

    def _grade(self, groups: list[RolloutGroup]) -> None:
        flat = [(g, c) for g in groups for c in g.completions]
        texts = self._tokenizer.batch_decode([list(c.token_ids) for _, c in flat], skip_special_tokens=True)
        items = [(text, g.prompt.ground_truth) for text, (g, _) in zip(texts, flat, strict=True)]
        verdicts = self._pool.grade(items)
        for (group, _), verdict in zip(flat, verdicts, strict=True):
            group.verdicts.append(verdict)
