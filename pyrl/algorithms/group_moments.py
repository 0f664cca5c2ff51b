"""Entropy and covariance within prompt groups, over all ranks: what theory predicts of a step's entropy change.

To first order one policy-gradient step changes a softmax policy's entropy by (arXiv 2505.22617, theorems 1 and 2)

    dH ~ -eta Cov(log pi, pi A)     vanilla policy gradient
    dH ~ -eta Cov(log pi, A)        natural policy gradient

with the covariance taken over the actions of one state. It is estimated within each prompt group and averaged over
groups, for two kinds of action:

- a response (the paper's section 3.3): log pi is the mean over its tokens, pi the exponential of that, A the mean of
  its tokens' advantages; groups are averaged by their number of responses;
- a token: log pi, pi and A are its own; groups are averaged by their number of tokens.

The members of a group may lie on different ranks after sequences were redistributed. So each rank adds up raw moments
of its part in fp64, one all-reduce sums those of all groups, and covariances come from the sums: no rank, micro-batch
or order matters beyond fp64 rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from pyrl.types import UID_POSITION_BITS, PackedBatch, TokenScores


@dataclass(frozen=True, slots=True)
class GroupMoments:
    """Moments of the items (tokens or responses) of each prompt group."""

    sums: np.ndarray
    """fp64 [8, groups]: number of items, and sums of log pi, A, A log pi, pi A, pi A log pi, H before, H after."""
    has_after: bool
    """Whether entropy after the updates was measured."""

    def entropy(self, groups: np.ndarray) -> float | None:
        """Mean entropy over the items of `groups` (bool [groups]) under the generating policy; None for no item."""
        return self._mean(6, groups)

    def entropy_change(self, groups: np.ndarray) -> float | None:
        """Mean over the items of entropy after the updates minus before; None where it was not measured."""
        if not self.has_after or (before := self._mean(6, groups)) is None:
            return None
        return self._mean(7, groups) - before

    def covariance(self, groups: np.ndarray, *, with_probability: bool) -> float | None:
        """Cov(log pi, A), or Cov(log pi, pi A), within each group, averaged by items over `groups`.

        A group's covariance is the mean of products of deviations from its own means. Groups of fewer than two items
        have none; None where no group has one.
        """
        count, logp = self.sums[0], self.sums[1]
        factor, product = (self.sums[4], self.sums[5]) if with_probability else (self.sums[2], self.sums[3])
        chosen = groups & (count >= 2)
        if not chosen.any():
            return None
        centred = product[chosen] - logp[chosen] * factor[chosen] / count[chosen]
        return float(centred.sum() / count[chosen].sum())

    def _mean(self, row: int, groups: np.ndarray) -> float | None:
        count = self.sums[0][groups].sum()
        return float(self.sums[row][groups].sum() / count) if count else None


def group_moments(
    batches: list[PackedBatch],
    before: list[TokenScores],
    after: list[TokenScores] | None,
    group_of_sample: torch.Tensor,
    groups: int,
    *,
    dp_group: dist.ProcessGroup | None,
) -> tuple[GroupMoments, GroupMoments]:
    """Of tokens and of responses, over this rank's micro-batches and the data-parallel group. Collective.

    `before`, `after`: scores under the policy that generated and under the one after the updates (None: not measured),
    beside `batches`. `group_of_sample`: int64 [samples], the prompt group, below `groups`, of each sample index.
    """
    mask = torch.cat([b.response_mask for b in batches])
    samples = torch.cat([b.token_uids for b in batches])[mask] >> UID_POSITION_BITS
    values = [
        torch.cat([s.logprobs for s in before]),
        torch.cat([b.advantages for b in batches]),
        torch.cat([s.entropy for s in before]),
    ]
    if after is not None:
        values.append(torch.cat([s.entropy for s in after]))
    tokens = torch.stack(values).detach()[:, mask].double()
    present, response, lengths = samples.unique(return_inverse=True, return_counts=True)
    responses = _added_up(tokens, response, len(present)) / lengths  # a response lies on one rank: its means are whole
    group_of_sample = group_of_sample.to(mask.device)
    sums = torch.stack(
        [
            _added_up(_products(items), group_of_sample[of_sample], groups)
            for items, of_sample in ((tokens, samples), (responses, present))
        ]
    )
    if dp_group is not None:
        dist.all_reduce(sums, group=dp_group)
    of_tokens, of_responses = sums.cpu().numpy()
    return GroupMoments(of_tokens, after is not None), GroupMoments(of_responses, after is not None)


def _products(items: torch.Tensor) -> torch.Tensor:
    """fp64 [3 or 4, n] of log pi, A, H before and perhaps H after -> [8, n], the rows of `GroupMoments.sums`."""
    logp, advantage, entropy = items[:3]
    after = items[3] if len(items) > 3 else torch.zeros_like(entropy)
    weighted = logp.exp() * advantage
    return torch.stack(
        [torch.ones_like(logp), logp, advantage, logp * advantage, weighted, logp * weighted, entropy, after]
    )


def _added_up(values: torch.Tensor, index: torch.Tensor, size: int) -> torch.Tensor:
    """[k, n] -> [k, size]: sums of the columns by `index` [n]."""
    return torch.zeros(len(values), size, dtype=values.dtype, device=values.device).index_add_(1, index, values)
