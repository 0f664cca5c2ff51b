"""Token covariance over a data-parallel group, the same bits for any partition. Formulas: csrc/token_covariance."""

from __future__ import annotations

import torch
import torch.distributed as dist

from pyrl.ops import _check, _library  # noqa: F401  (loading the library defines torch.ops.pyrl)

_SUMS = 19
"""Two sums of 9 words and a count. Equal to kSums of csrc/token_covariance/tokens.h."""


def token_covariance(
    logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """(logprob - mean logprob) (advantage - mean advantage) of each token (arXiv 2505.22617, eq. 10).

    The means run over the tokens of all ranks of `group` where `mask` is true and both numbers are finite. Their sums
    are exact integers (one integer all-reduce of 152 bytes), so neither the partition into ranks nor the order of
    tokens changes a bit, nor does the device. Nothing waits for the device. Exact below 2^31 tokens.

    Args:
        logprobs, advantages: fp32 [T]; T may differ between ranks and be 0.
        mask: bool [T]
        group: data-parallel group, or None.

    Returns:
        fp32 [T], detached; 0 where masked; NaN where a valid token's log-prob or advantage is not finite.

    Raises:
        ValueError: a wrong shape, dtype or device.
    """
    _check.tensor("logprobs", logprobs, (torch.float32,), ("T",))
    (tokens,) = logprobs.shape
    _check.tensor("advantages", advantages, (torch.float32,), (tokens,), logprobs.device)
    _check.tensor("mask", mask, (torch.bool,), (tokens,), logprobs.device)
    logprobs, advantages = logprobs.detach(), advantages.detach()
    sums = torch.ops.pyrl.covariance_sums(logprobs, advantages, mask)
    if _check.group_size(group) > 1:
        dist.all_reduce(sums, group=group)
    return torch.ops.pyrl.token_covariance(logprobs, advantages, mask, sums)


@torch.library.register_fake("pyrl::covariance_sums")
def _(logprobs, advantages, mask):
    return logprobs.new_empty((_SUMS,), dtype=torch.int64)


@torch.library.register_fake("pyrl::token_covariance")
def _(logprobs, advantages, mask, sums):
    return logprobs.new_empty(logprobs.shape)
