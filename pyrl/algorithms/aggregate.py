"""The one place with a loss denominator. It is counted over the whole mini-batch on all data-parallel ranks.

A mean of micro-batch means would weigh a token by the micro-batch it happens to sit in; a sum over one global count
does not depend on ranks, micro-batches or packing. Chosen by `algorithm.loss_agg_mode`; verl's names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pyrl.algorithms.sequences import sequence_sums
from pyrl.types import PackedBatch


def global_token_count(masks: Iterable[torch.Tensor], group: dist.ProcessGroup | None) -> int:
    """Valid tokens of `masks` (bool [T], this rank's micro-batches, at least one) over the data-parallel `group`.

    `group` None: this process alone. Collective.
    """
    count = torch.stack([mask.sum() for mask in masks]).sum()
    if group is not None:
        dist.all_reduce(count, group=group)
    return int(count)


@dataclass(frozen=True, slots=True)
class MiniBatchSize:
    """Of one optimizer update, over all data-parallel ranks."""

    tokens: int
    """Valid tokens."""
    sequences: int
    """Responses."""


def mini_batch_size(batches: Iterable[PackedBatch], group: dist.ProcessGroup | None) -> MiniBatchSize:
    """Of this rank's micro-batches (at least one) and those of the data-parallel `group`. Collective."""
    batches = list(batches)
    tokens = torch.stack([batch.response_mask.sum() for batch in batches]).sum()
    counts = torch.stack((tokens, tokens.new_tensor(sum(len(batch.sample_indices) for batch in batches))))
    if group is not None:
        dist.all_reduce(counts, group=group)
    return MiniBatchSize(*(int(count) for count in counts.tolist()))


def aggregate(
    loss: torch.Tensor, batch: PackedBatch, size: MiniBatchSize, *, mode: str, loss_scale_factor: int
) -> torch.Tensor:
    """This micro-batch's part of the loss of the mini-batch, a scalar with gradient; the parts of all micro-batches of
    all ranks add up to it.

    `loss` [T], read where `batch.response_mask` is true. `loss_scale_factor` is read by `seq-mean-token-sum-norm`
    alone. Raises ValueError when the mini-batch has no valid token.
    """
    return AGGREGATIONS[mode](loss, batch, size, loss_scale_factor)


def token_mean(loss: torch.Tensor, mask: torch.Tensor, token_count: int) -> torch.Tensor:
    """This micro-batch's part of the token mean: sum over valid tokens / `token_count`, a scalar with gradient.

    `loss` [T], `mask` bool [T], `token_count` from `global_token_count`; the parts of all micro-batches of all ranks
    add up to the mean. Raises ValueError when there is no valid token anywhere.
    """
    if token_count < 1:
        raise ValueError(f"token_count: wanted at least 1 valid token in the mini-batch, got {token_count}")
    return torch.where(mask, loss, 0.0).sum() / token_count


def _token_mean(loss: torch.Tensor, batch: PackedBatch, size: MiniBatchSize, _: int) -> torch.Tensor:
    """(1 / N) sum_t L_t, N valid tokens: every token weighs the same (DAPO, arXiv 2503.14476 eq. 12; TRL's `dapo`)."""
    return token_mean(loss, batch.response_mask, size.tokens)


def _seq_mean_token_mean(loss: torch.Tensor, batch: PackedBatch, size: MiniBatchSize, _: int) -> torch.Tensor:
    """(1 / S) sum_i (1 / |y_i|) sum_t L_it, S responses: every response weighs the same, so a token of a long one
    weighs less (GRPO, arXiv 2402.03300 eq. 3; TRL's `grpo`)."""
    sums = sequence_sums(loss, batch.response_mask, batch.cu_seqlens)
    lengths = sequence_sums(torch.ones_like(loss), batch.response_mask, batch.cu_seqlens)
    return (sums / lengths.clamp(min=1)).sum() / _at_least_one(size.sequences)


def _seq_mean_token_sum_norm(
    loss: torch.Tensor, batch: PackedBatch, size: MiniBatchSize, loss_scale_factor: int
) -> torch.Tensor:
    """(1 / (S L)) sum_i sum_t L_it with a constant L: no length in a denominator (Dr. GRPO, arXiv 2503.20783; TRL's
    `dr_grpo`). L is `algorithm.loss_scale_factor`."""
    return torch.where(batch.response_mask, loss, 0.0).sum() / (_at_least_one(size.sequences) * loss_scale_factor)


AGGREGATIONS: dict[str, Callable[[torch.Tensor, PackedBatch, MiniBatchSize, int], torch.Tensor]] = {
    "token-mean": _token_mean,
    "seq-mean-token-mean": _seq_mean_token_mean,
    "seq-mean-token-sum-norm": _seq_mean_token_sum_norm,
}
"""By `algorithm.loss_agg_mode`: function of (loss, batch, size, loss_scale_factor)."""


def _at_least_one(sequences: int) -> int:
    if sequences < 1:
        raise ValueError(f"sequences: wanted at least 1 response in the mini-batch, got {sequences}")
    return sequences
