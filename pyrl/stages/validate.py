"""Validate: mean reward on held-out prompts, sampled as in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyrl.config import ValidationConfig
from pyrl.stages.collect import Collector, GroupFacts, count_reasons, mean_reward, reward_by_source
from pyrl.telemetry.timers import Timers
from pyrl.types import Prompt, StepRecord


@dataclass(frozen=True, slots=True)
class Validation:
    """What the held-out prompts say of one policy."""

    metrics: StepRecord
    """Fields `validation_*`."""
    questions: list[dict[str, Any]]
    """A row of `validation.jsonl` for each prompt that was answered."""


class Validator:
    def __init__(
        self, config: ValidationConfig, prompts: list[Prompt], collector: Collector, timers: Timers, *, last_step: int
    ) -> None:
        self._config = config
        self._last_step = last_step
        self._prompts = list(enumerate(prompts[: config.max_prompts]))
        self._collector = collector
        self._timers = timers

    def validate(self, step: int) -> Validation:
        """Of the policy after `step` steps. Collective."""
        last = self._config.final_samples_per_prompt if step == self._last_step else None
        samples = last or self._config.samples_per_prompt
        with self._timers.phase("validation"):
            own = self._collector.generate_and_grade(
                self._prompts, samples, step=step, policy_version=step, purpose="validation"
            )
            groups = self._collector.share_facts(own)
        rewards = [r for g in groups for r in g.rewards]
        judged = sum(r is not None for r in rewards)
        metrics = {
            "validation_reward_mean": mean_reward(groups),
            "validation_reward_by_source": reward_by_source(groups),
            "validation_n": judged,
            "validation_unjudged": len(rewards) - judged,
        }
        return Validation(metrics, [_row(step, group) for group in groups])


def _row(step: int, group: GroupFacts) -> dict[str, Any]:
    return {
        "step": step,
        "prompt_id": group.prompt_id,
        "source": group.source,
        "samples": len(group.verdicts),
        "right": group.verdicts.count("right"),
        "unjudged": group.verdicts.count("unjudged"),
        "reasons": count_reasons([group]),
    }
