"""Training that teaches nothing, or breaks: what the records of a run say of it, each fault once in words.

    health = Health(config, vocabulary=151_936)
    record |= health.add(record)            # once a step: `alarms`, every fault that holds in this step
    for message in health.messages: ...     # of faults that hold for the first time
    state["health"] = health.state_dict()   # what a resumed run goes on from, to the bit
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrl.config import RunConfig

ZERO_STEPS = 5
"""Steps in a row whose gradient is exactly 0."""
WINDOW = 10
"""Steps of a running mean."""
TRUNCATED_SHARE = 0.25
"""Of the responses, from which truncation with rising entropy is a fault."""
RISE = 1.25
"""Of the running mean of the entropy, from its lowest or from where the reward was best."""
FALL = 0.8
"""Of the running mean of the reward, from its best."""
KL_LEAP, KL_TIMES = 1.0, 10.0
"""approx_kl, nats a token, and its multiple of the median before, from which an update may have broken the policy. Of a
single update a rollout it is 0, and nothing is said."""
LEARNT = 0.02
"""A mean reward that can be lost."""
COLLAPSED, UNIFORM = 0.01, 0.9
"""Entropy, as a multiple of its mean before, and of ln(vocabulary)."""
HISTORY = 2 * WINDOW
KEPT = ("step", "entropy", "reward_mean", "truncated_fraction", "approx_kl", "grad_norm", "groups_kept",
        "groups_dropped_uniform", "groups_dropped_unjudged", "groups_failed", "rollout_logprobs_nonfinite")  # fmt: skip
"""Fields of a record that faults are read from."""


class Health:
    """Of one run, from its records."""

    def __init__(self, config: RunConfig, *, vocabulary: int) -> None:
        self._config = config
        self._vocabulary = vocabulary
        self._history: list[dict[str, Any]] = []
        self._best: dict[str, float] | None = None
        """Running means where that of the reward was highest."""
        self._lowest_entropy: float | None = None
        """Running mean."""
        self._said: list[str] = []
        self.messages: list[str] = []
        """Of the last step: what was seen, and what to try."""

    def add(self, record: dict[str, Any]) -> dict[str, Any]:
        """Take in a step's record; returns the field that it adds."""
        self._history = [*self._history, {name: record[name] for name in KEPT}][-HISTORY:]
        self._follow_means()
        found = {name: message for name, check in FAULTS.items() if (message := check(self))}
        new = [name for name in found if name not in self._said]
        self.messages = [f"step {record['step']}: {found[name]}" for name in new]
        self._said += new
        return {"alarms": dict.fromkeys(found, 1)}

    def state_dict(self) -> dict[str, Any]:
        """What JSON holds without loss."""
        return {"history": self._history, "said": self._said, "best": self._best, "lowest": self._lowest_entropy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._history, self._said = list(state["history"]), list(state["said"])
        self._best, self._lowest_entropy = state["best"], state["lowest"]

    def _last(self, name: str) -> Any:
        return self._history[-1][name]

    def _values(self, name: str) -> list[float]:
        return [row[name] for row in self._history if row[name] is not None]

    def _mean(self, name: str) -> float | None:
        """Over the last window; None before it is full."""
        values = self._values(name)[-WINDOW:]
        return fmean(values) if len(values) == WINDOW else None

    def _follow_means(self) -> None:
        entropy, reward = self._mean("entropy"), self._mean("reward_mean")
        if entropy is not None:
            self._lowest_entropy = entropy if self._lowest_entropy is None else min(entropy, self._lowest_entropy)
        if entropy is not None and reward is not None and (self._best is None or reward > self._best["reward"]):
            self._best = {"reward": reward, "entropy": entropy}

    def _zero_gradient(self) -> str | None:
        last = self._history[-ZERO_STEPS:]
        if len(last) < ZERO_STEPS or any(row["grad_norm"] != 0.0 for row in last):
            return None
        rewards = [row["reward_mean"] for row in last if row["reward_mean"] is not None]
        mean = fmean(rewards) if rewards else None
        seen = f"the gradient was exactly 0 for {ZERO_STEPS} steps, so nothing was learnt"
        if mean == 0.0:
            return (f"{seen}: no response was right. Look at samples.jsonl: the questions are too hard for this model, "
                    "or the grader finds no answer in its form (data.template, reward.task)")  # fmt: skip
        if mean == 1.0:
            return f"{seen}: every response was right. Give harder questions"
        return (f"{seen}: each group had one reward throughout (mean {mean:.3g}). Raise rollout.samples_per_prompt, or "
                "give questions that are right now and then")  # fmt: skip

    def _all_truncated(self) -> str | None:
        if self._last("truncated_fraction") != 1.0:
            return None
        return (
            f"every response was cut off at rollout.max_response_tokens {self._config.rollout.max_response_tokens}. "
            "Raise it, or give a model that ends its answers with its tokenizer's EOS"
        )

    def _truncated_and_rising(self) -> str | None:
        share, entropy = self._mean("truncated_fraction"), self._mean("entropy")
        if share is None or entropy is None or share < TRUNCATED_SHARE or entropy < RISE * self._lowest_entropy:
            return None
        return (
            f"{share:.0%} of the responses of the last {WINDOW} steps were cut off, while entropy rose from "
            f"{self._lowest_entropy:.3g} to {entropy:.3g} nats: the policy drifts into text without end. Lower "
            "optimizer.lr or the strength of what holds entropy up (loss, algorithm.entropy_coef), or raise "
            "rollout.max_response_tokens"
        )

    def _rising_and_worse(self) -> str | None:
        entropy, reward, best = self._mean("entropy"), self._mean("reward_mean"), self._best
        if best is None or entropy is None or best["reward"] <= LEARNT:
            return None
        if entropy < RISE * best["entropy"] or reward > FALL * best["reward"]:
            return None
        return (
            f"the reward fell from {best['reward']:.3g} to {reward:.3g} (means of {WINDOW} steps) while entropy rose "
            f"from {best['entropy']:.3g} to {entropy:.3g} nats. Lower optimizer.lr, or the strength of what holds "
            "entropy up (loss, algorithm.entropy_coef)"
        )

    def _broken(self) -> str | None:
        before, kl = self._history[:-1], self._values("approx_kl")
        if len(before) < ZERO_STEPS or len(kl) <= ZERO_STEPS:
            return None
        leap, usual = max(kl[-2:]), median(kl[:-2])
        if leap < max(KL_LEAP, KL_TIMES * usual):
            return None
        rewards, entropies = self._values("reward_mean"), self._values("entropy")
        reward, entropy = fmean(rewards[:-1]), fmean(entropies[:-1])
        lost = reward > LEARNT and rewards[-1] == 0.0
        collapsed = entropies[-1] < COLLAPSED * entropy
        uniform = entropies[-1] > max(UNIFORM * math.log(self._vocabulary), RISE * entropy)
        if not (lost or collapsed or uniform):
            return None
        return (
            f"an update broke the policy: approx_kl leapt to {leap:.3g} nats a token ({usual:.2g} before), entropy "
            f"went from {entropy:.3g} to {entropies[-1]:.3g} nats (at most {math.log(self._vocabulary):.3g}) and the "
            f"reward from {reward:.3g} to {rewards[-1]:.3g}. Start again with a lower optimizer.lr, now "
            f"{self._config.optimizer.lr:g}"
        )

    def _fewer_groups(self) -> str | None:
        rollout, kept = self._config.rollout, self._last("groups_kept")
        if not rollout.dynamic_sampling.enabled or kept >= rollout.prompts_per_step:
            return None
        dropped = {
            "all right or all wrong": self._last("groups_dropped_uniform"),
            "unjudged": self._last("groups_dropped_unjudged"),
            "without an answer": self._last("groups_failed"),
        }
        why = ", ".join(f"{count} {words}" for words, count in dropped.items() if count)
        return (
            f"dynamic sampling ended after rollout.dynamic_sampling.max_refills {rollout.dynamic_sampling.max_refills} "
            f"with {kept} of {rollout.prompts_per_step} groups ({why}); the step trained on those"
        )

    def _nonfinite_logprobs(self) -> str | None:
        count = self._last("rollout_logprobs_nonfinite")
        if not count:
            return None
        return (
            f"{count} tokens came with a log-prob that is not finite; they are left out of the loss. The engine's "
            "logits overflow: look at its dtype (rollout.extra_server_args), and at entropy for a policy that breaks"
        )


FAULTS: dict[str, Callable[[Health], str | None]] = {
    "zero_gradient": Health._zero_gradient,
    "all_truncated": Health._all_truncated,
    "truncated_and_rising_entropy": Health._truncated_and_rising,
    "rising_entropy_and_falling_reward": Health._rising_and_worse,
    "broken_policy": Health._broken,
    "fewer_groups": Health._fewer_groups,
    "nonfinite_rollout_logprobs": Health._nonfinite_logprobs,
}
"""Name in `alarms` -> its words where it holds."""
