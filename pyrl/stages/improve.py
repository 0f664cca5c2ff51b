"""Improve: advantages -> pack -> per mini-batch: log-probs -> select -> loss -> update.

How this differs from the published code of Clip-Cov and KL-Cov (arXiv 2505.22617, and verl's copy):
- tokens are centred and ranked over the whole optimizer mini-batch on every data-parallel rank, not per micro-batch;
- in the first update after a rollout `old_logprobs` are the detached log-probs of that same forward pass, so the ratio
  is exactly 1 and KL-Cov's penalty exactly 0 (else rounding noise would give sign(0) a full-size gradient);
- the loss has one denominator: the valid tokens of the mini-batch over all ranks.
"""

from __future__ import annotations

import torch

from pyrl import ops
from pyrl.algorithms.advantage import ADVANTAGES
from pyrl.algorithms.aggregate import global_token_count, token_mean
from pyrl.algorithms.metrics import add_up, global_sums, token_statistics
from pyrl.algorithms.policy_loss import policy_loss
from pyrl.algorithms.selection import covariance_statistics, select_tokens, selection_seed, token_covariance
from pyrl.config import RunConfig
from pyrl.data.packing import pack, plan_micro_batches, split_mini_batches
from pyrl.learner.learner import Learner
from pyrl.learner.parallel import Parallel
from pyrl.stages.summary import UpdateSummary, summarize_updates
from pyrl.telemetry.timers import Timers
from pyrl.types import PackedBatch, RolloutGroup, Sequence, StepRecord

MiniBatch = list[PackedBatch]
"""This rank's micro-batches of one optimizer update."""


class PolicyImprover:
    """The updates of one rollout batch. Every rank calls it with the same groups."""

    def __init__(self, config: RunConfig, learner: Learner, parallel: Parallel, timers: Timers) -> None:
        self._config = config
        self._learner = learner
        self._parallel = parallel
        self._timers = timers
        self._scope = getattr(config.loss, "cov_scope", None)

    def improve(self, groups: list[RolloutGroup], *, step: int) -> StepRecord:
        """`algorithm.updates_per_rollout` optimizer updates; returns policy and optimization metrics. Collective."""
        mini_batches = [self._pack(part) for part in self._sequences(groups)]
        everything = [batch for mini_batch in mini_batches for batch in mini_batch]
        with self._timers.phase("score"):
            scores = self._learner.score(everything)
            for batch, score in zip(everything, scores, strict=True):
                batch.old_logprobs = score.logprobs
            statistics = token_statistics(everything, scores, group=self._parallel.dp_group).metrics()
            del statistics["response_tokens"]  # of the kept groups; the record counts the generated ones
        with self._timers.phase("update"):
            if self._scope == "rollout_batch":
                self._select(everything, [batch.old_logprobs for batch in everything], step, 0)
            updates = [self._update(mini_batch, index, step) for index, mini_batch in enumerate(mini_batches)]
        return statistics | summarize_updates(updates, self._config.loss)

    def _sequences(self, groups: list[RolloutGroup]) -> list[list[Sequence]]:
        """Mini-batches of sequences with advantages; completions that could not be judged are left out."""
        advantages_of = ADVANTAGES[self._config.algorithm.advantage]
        per_group: list[list[Sequence]] = []
        index = 0
        for group in groups:
            sequences = []
            for completion, advantage in zip(group.completions, advantages_of(group.rewards), strict=True):
                if advantage is not None:
                    prompt_ids, logprobs = group.prompt.token_ids, completion.rollout_logprobs
                    sequences.append(Sequence(index, prompt_ids, completion.token_ids, advantage, logprobs))
                index += 1
            per_group.append(sequences)
        parts = split_mini_batches(per_group, self._config.algorithm.updates_per_rollout)
        return [[sequence for group in part for sequence in group] for part in parts]

    def _pack(self, sequences: list[Sequence]) -> MiniBatch:
        lengths, budget = [len(s) for s in sequences], self._config.optimizer.max_tokens_per_micro_batch
        plan = plan_micro_batches(lengths, dp=self._parallel.dp_size, max_tokens=budget)[self._parallel.dp_rank]
        multiple, device = self._learner.pad_multiple, self._parallel.device
        return [pack([sequences[i] for i in micro], pad_multiple=multiple).to(device) for micro in plan]

    def _update(self, mini_batch: MiniBatch, index: int, step: int) -> UpdateSummary:
        """One optimizer update. `index` 0 is the first after the rollout: the policy is its own old policy there."""
        tokens = global_token_count([batch.response_mask for batch in mini_batch], self._parallel.dp_group)
        select_in_loss = self._select_ahead(mini_batch, index, step)

        def loss_fn(
            batch: PackedBatch, logprobs: torch.Tensor, entropy: torch.Tensor
        ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            current = logprobs.detach()
            if select_in_loss:
                self._select([batch], [current], step, index, first=index == 0)
            old = None if index == 0 else batch.old_logprobs
            mask = batch.response_mask
            loss, sums = policy_loss(logprobs, old, batch.advantages, mask, batch.selected, self._config.loss)
            part = token_mean(loss, mask, tokens)
            return part, {"loss": part.detach().double(), "logprobs": current} | sums

        result = self._learner.update(mini_batch, loss_fn)
        logprobs = [output.pop("logprobs") for output in result.outputs]
        sums = global_sums(add_up(result.outputs), self._parallel.dp_group, device=self._parallel.device)
        mask, advantages = _joined(mini_batch, "response_mask"), _joined(mini_batch, "advantages")
        group = self._parallel.dp_group
        covariance = ops.token_covariance(torch.cat(logprobs), advantages, mask, group=group)  # whatever the scope
        return UpdateSummary(tokens, result.grad_norm, sums, covariance_statistics(covariance, mask, group=group))

    def _select_ahead(self, mini_batch: MiniBatch, index: int, step: int) -> bool:
        """Choose the mini-batch's tokens before its loss, by one more forward pass, where that is needed.

        True: the choice can be made inside the loss, by its own log-probs: the scope is one micro-batch, or every rank
        holds its part of the mini-batch as one.
        """
        if self._scope in (None, "rollout_batch"):
            return False
        if self._scope == "micro_batch" or len(mini_batch) == 1:
            return True
        if index == 0:
            logprobs = [batch.old_logprobs for batch in mini_batch]
        else:
            logprobs = [score.logprobs for score in self._learner.score(mini_batch)]
        self._select(mini_batch, logprobs, step, index, first=index == 0)
        return False

    def _select(
        self, batches: MiniBatch, logprobs: list[torch.Tensor], step: int, index: int, *, first: bool = True
    ) -> None:
        """Fill `selected` of `batches`, the scope's tokens of this rank. `first`: they are at ratio 1."""
        config, group = self._config.loss, self._parallel.dp_group
        current, advantages = torch.cat(logprobs), _joined(batches, "advantages")
        mask, uids = _joined(batches, "response_mask"), _joined(batches, "token_uids")
        old = current if first else _joined(batches, "old_logprobs")
        covariance = token_covariance(current, advantages, mask, loss=config, group=group)
        seed = selection_seed(self._config.seed, step, index)
        chosen = select_tokens(config, covariance, current, old, advantages, mask, uids, seed=seed, group=group)
        if chosen is not None:
            for batch, part in zip(batches, chosen.split([len(b.tokens) for b in batches]), strict=True):
                batch.selected = part


def _joined(batches: MiniBatch, name: str) -> torch.Tensor:
    return torch.cat([getattr(batch, name) for batch in batches])
