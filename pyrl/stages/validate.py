"""Validate: mean reward on held-out prompts, sampled as in training."""

from __future__ import annotations

from pyrl.config import ValidationConfig
from pyrl.stages.collect import Collector, mean_reward, reward_by_source
from pyrl.telemetry.timers import Timers
from pyrl.types import Prompt, StepRecord


class Validator:
    def __init__(self, config: ValidationConfig, prompts: list[Prompt], collector: Collector, timers: Timers) -> None:
        self._config = config
        self._prompts = list(enumerate(prompts[: config.max_prompts]))
        self._collector = collector
        self._timers = timers

    def validate(self, step: int) -> StepRecord:
        """Fields `validation_*` of the policy after `step` steps. Collective."""
        with self._timers.phase("validation"):
            own = self._collector.generate_and_grade(
                self._prompts, self._config.samples_per_prompt, step=step, policy_version=step, purpose="validation"
            )
            groups = self._collector.share_facts(own)
        rewards = [r for g in groups for r in g.rewards]
        judged = sum(r is not None for r in rewards)
        return {
            "validation_reward_mean": mean_reward(groups),
            "validation_reward_by_source": reward_by_source(groups),
            "validation_n": judged,
            "validation_unjudged": len(rewards) - judged,
        }
