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
from pyrl.algorithms.aggregate import aggregate, mini_batch_size
from pyrl.algorithms.metrics import add_up, global_sums, token_statistics
from pyrl.algorithms.objective import token_objective
from pyrl.algorithms.quadrants import covariance_quadrants
from pyrl.algorithms.selection import covariance_statistics, select_tokens, selection_seed, token_covariance
from pyrl.config import LossConfig, RunConfig
from pyrl.data.packing import pack, plan_micro_batches, split_mini_batches
from pyrl.learner.learner import Learner
from pyrl.learner.parallel import Parallel
from pyrl.stages.collect import Collected
from pyrl.stages.exchange import SequenceFacts, redistribute
from pyrl.stages.instruments import measure_dynamics
from pyrl.stages.selected_sample import SelectedToken, draw, draw_seed, gather_sample
from pyrl.stages.summary import UpdateSummary, summarize_updates
from pyrl.telemetry.timers import Timers
from pyrl.types import Completion, PackedBatch, Prompt, Sequence, StepRecord, TokenScores

MiniBatch = list[PackedBatch]
"""This rank's micro-batches of one optimizer update."""
SELECTED_PER_STEP = 8
"""Tokens chosen by Clip-Cov or KL-Cov that are shown of each step."""


class PolicyImprover:
    """The updates of one rollout batch."""

    def __init__(self, config: RunConfig, learner: Learner, parallel: Parallel, timers: Timers) -> None:
        self._config = config
        self._learner = learner
        self._parallel = parallel
        self._timers = timers
        self.loss: LossConfig = config.loss
        """Of the coming step; a controller may change its settings between steps."""
        self._scope = getattr(config.loss, "cov_scope", None)
        self._select_by_old = getattr(config.loss, "cov_logprobs", None) == "old"
        self.selected_sample: list[SelectedToken] = []
        """Of the last step, on rank 0."""

    def improve(self, collected: Collected, *, step: int) -> StepRecord:
        """`algorithm.updates_per_rollout` optimizer updates; returns policy and optimization metrics. Collective."""
        mini_batches = self._mini_batches(collected)
        everything = [batch for mini_batch in mini_batches for batch in mini_batch]
        with self._timers.phase("score"):
            # The first update runs under the rollout's policy, so its own forward pass scores its mini-batch.
            score_first = self._scope == "rollout_batch" or self._selects_ahead(mini_batches[0])
            ahead = everything if score_first else everything[len(mini_batches[0]) :]
            scores = self._learner.score(ahead) if ahead else []
            for batch, score in zip(ahead, scores, strict=True):
                batch.old_logprobs = score.logprobs
            if self._config.algorithm.kl_loss_coef > 0:
                for batch, score in zip(everything, self._learner.score_reference(everything), strict=True):
                    batch.ref_logprobs = score.logprobs
        with self._timers.phase("update"):
            if self._scope == "rollout_batch":
                self._select(everything, [batch.old_logprobs for batch in everything], step, 0)
            updates = [self._update(mini_batch, index, step) for index, mini_batch in enumerate(mini_batches)]
        summaries, scores_of_updates, drawn = zip(*updates, strict=True)
        if not score_first:
            scores = scores_of_updates[0] + scores
        statistics = token_statistics(everything, scores, group=self._parallel.dp_group).metrics()
        del statistics["response_tokens"]  # of the kept groups; the record counts the generated ones
        with self._timers.phase("instruments"):
            dynamics = measure_dynamics(
                self._config.instruments, collected, everything, scores, self._learner, self._parallel, step=step
            )
            own = [token for tokens in drawn for token in tokens]
            self.selected_sample = gather_sample(own, SELECTED_PER_STEP, self._parallel)
        return statistics | dynamics | summarize_updates(list(summaries), self.loss)

    def _mini_batches(self, collected: Collected) -> list[MiniBatch]:
        """This rank's part of every update. All ranks plan from the same facts; then the sequences travel."""
        facts, held = self._outline(collected)
        parts = split_mini_batches(facts, self._config.algorithm.updates_per_rollout)
        mini_batches = [[sequence for group in part for sequence in group] for part in parts]
        receivers: dict[int, int] = {}
        mine: list[list[list[int]]] = []
        for sequences in mini_batches:
            lengths, budget = [len(s) for s in sequences], self._config.optimizer.max_tokens_per_micro_batch
            plan = plan_micro_batches(lengths, dp=self._parallel.dp_size, max_tokens=budget)
            indices = [[[sequences[i].sample_index for i in micro] for micro in rank] for rank in plan]
            receivers |= {i: rank for rank, micros in enumerate(indices) for micro in micros for i in micro}
            mine.append(indices[self._parallel.dp_rank])
        flat = [sequence for sequences in mini_batches for sequence in sequences]
        here = redistribute(flat, receivers, held, self._parallel)
        return [[self._pack([here[i] for i in micro]) for micro in micros] for micros in mine]

    def _outline(self, collected: Collected) -> tuple[list[list[SequenceFacts]], dict[int, tuple[Prompt, Completion]]]:
        """The sequences of each kept group, and by sample index those that this rank holds.

        Completions that could not be judged are left out.
        """
        estimate = ADVANTAGES[self._config.algorithm.advantage]
        graded = [facts for facts, _ in collected.kept]
        advantages = estimate([facts.rewards for facts in graded], [facts.response_tokens for facts in graded])
        outline: list[list[SequenceFacts]] = []
        held: dict[int, tuple[Prompt, Completion]] = {}
        index = 0
        for (facts, group), of_group in zip(collected.kept, advantages, strict=True):
            sequences = []
            for i, advantage in enumerate(of_group):
                if advantage is not None:
                    lengths = facts.prompt_tokens, facts.response_tokens[i]
                    sequences.append(SequenceFacts(index, *lengths, advantage, facts.holder))
                    if group is not None:
                        held[index] = group.prompt, group.completions[i]
                index += 1
            outline.append(sequences)
        return outline, held

    def _pack(self, sequences: list[Sequence]) -> PackedBatch:
        return pack(sequences, pad_multiple=self._learner.pad_multiple).to(self._parallel.device)

    def _update(
        self, mini_batch: MiniBatch, index: int, step: int
    ) -> tuple[UpdateSummary, list[TokenScores], list[SelectedToken]]:
        """One optimizer update, the scores of its forward pass, and some of the tokens that this rank chose.

        `index` 0 is the first after the rollout: the policy is its own old policy there.
        """
        group = self._parallel.dp_group
        size = mini_batch_size(mini_batch, group)
        mode = self._config.algorithm.loss_agg_mode
        loss_scale_factor = self._config.algorithm.loss_scale_factor or self._config.rollout.max_response_tokens
        select_in_loss = self._scope == "micro_batch" or (self._scope == "mini_batch" and len(mini_batch) == 1)
        if self._selects_ahead(mini_batch):
            known = index == 0 or self._select_by_old
            logprobs = [b.old_logprobs for b in mini_batch] if known else self._current_logprobs(mini_batch)
            self._select(mini_batch, logprobs, step, index, first=index == 0)

        def loss_fn(
            batch: PackedBatch, logprobs: torch.Tensor, entropy: torch.Tensor
        ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            current = logprobs.detach()
            if select_in_loss:
                by_old = self._select_by_old and index > 0
                self._select([batch], [batch.old_logprobs if by_old else current], step, index, first=index == 0)
            old = None if index == 0 else batch.old_logprobs
            loss, sums = token_objective(
                batch, logprobs, entropy, old, loss=self.loss, algorithm=self._config.algorithm
            )
            part = aggregate(loss, batch, size, mode=mode, loss_scale_factor=loss_scale_factor)
            if batch.selected is not None:
                sums["selected"] = batch.selected
            return part, {"loss": part.detach().double(), "logprobs": current, "entropy": entropy.detach()} | sums

        result = self._learner.update(mini_batch, loss_fn)
        scores = [TokenScores(output.pop("logprobs"), output.pop("entropy")) for output in result.outputs]
        selected = [output.pop("selected") for output in result.outputs if "selected" in output]
        sums = global_sums(add_up(result.outputs), group, device=self._parallel.device)
        mask, advantages = _joined(mini_batch, "response_mask"), _joined(mini_batch, "advantages")
        logprobs = torch.cat([score.logprobs for score in scores])
        covariance = ops.token_covariance(logprobs, advantages, mask, group=group)  # whatever the scope
        statistics = covariance_statistics(covariance, mask, group=group)
        with self._timers.phase("instruments"):
            quadrants = covariance_quadrants(covariance, advantages, mask, group=group)
            shown = {"update": index, "seed": draw_seed(self._config.seed, step), "count": SELECTED_PER_STEP}
            drawn = draw(mini_batch, scores, selected, covariance, **shown) if selected else []
        return UpdateSummary(size.tokens, result.grad_norm, sums, statistics, quadrants), scores, drawn

    def _selects_ahead(self, mini_batch: MiniBatch) -> bool:
        """Whether the mini-batch's tokens are chosen before its loss, with all their log-probs at hand.

        Where every rank holds its part as one micro-batch, they are chosen inside the loss, by its own log-probs.
        """
        return self._scope == "mini_batch" and len(mini_batch) > 1

    def _current_logprobs(self, mini_batch: MiniBatch) -> list[torch.Tensor]:
        return [score.logprobs for score in self._learner.score(mini_batch)]

    def _select(
        self, batches: MiniBatch, logprobs: list[torch.Tensor], step: int, index: int, *, first: bool = True
    ) -> None:
        """Fill `selected` of `batches`, the scope's tokens of this rank. `first`: they are at ratio 1."""
        config, group = self.loss, self._parallel.dp_group
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
