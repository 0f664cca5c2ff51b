"""The one place with a loss denominator: the valid tokens of the whole mini-batch, over all data-parallel ranks.

A mean of micro-batch means would weigh a token by the micro-batch it happens to sit in; a sum over one global count
does not depend on ranks, micro-batches or packing.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist


def global_token_count(masks: Iterable[torch.Tensor], group: dist.ProcessGroup | None) -> int:
    """Valid tokens of `masks` (bool [T], this rank's micro-batches, at least one) over the data-parallel `group`.

    `group` None: this process alone. Collective.
    """
    count = torch.stack([mask.sum() for mask in masks]).sum()
    if group is not None:
        dist.all_reduce(count, group=group)
    return int(count)


def token_mean(loss: torch.Tensor, mask: torch.Tensor, token_count: int) -> torch.Tensor:
    """This micro-batch's part of the token mean: sum over valid tokens / `token_count`, a scalar with gradient.

    `loss` [T], `mask` bool [T], `token_count` from `global_token_count`; the parts of all micro-batches of all ranks
    add up to the mean. Raises ValueError when there is no valid token anywhere.
    """
    if token_count < 1:
        raise ValueError(f"token_count: wanted at least 1 valid token in the mini-batch, got {token_count}")
    return torch.where(mask, loss, 0.0).sum() / token_count
