"""Token covariance over a data-parallel group, the same bits for any partition. Formulas: csrc/token_covariance."""

from __future__ import annotations

import torch
import torch.distributed as dist

from pyrl.ops import _check, _library  # noqa: F401  (loading the library defines torch.ops.pyrl)

SUM_LIMBS = 32
"""int64 limbs of an exact sum of fp32 numbers; limb i weighs 2^(8 i - 149). Equal to kSumLimbs of the C++ header."""


def token_covariance(
    logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """(logprob - mean logprob) (advantage - mean advantage) of each token (arXiv 2505.22617, eq. 10).

    The means run over the tokens of all ranks of `group` where `mask` is true and both numbers are finite. Their sums
    are exact integers (one integer all-reduce of 520 bytes), so neither the partition into ranks nor the order of
    tokens changes a bit.

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
    limbs = sums.tolist()
    count = limbs[-1]
    centred_logprobs = logprobs.double() - _mean(limbs[:SUM_LIMBS], count)
    centred_advantages = advantages.double() - _mean(limbs[SUM_LIMBS : 2 * SUM_LIMBS], count)
    covariance = (centred_logprobs * centred_advantages).float()
    finite = logprobs.isfinite() & advantages.isfinite()
    covariance = covariance.masked_fill(~finite, torch.nan)
    return covariance.masked_fill(~mask, 0.0)


def _mean(limbs: list[int], count: int) -> float:
    """The exact mean, rounded once: Python divides integers correctly rounded. 0 for no token."""
    if count == 0:
        return 0.0
    total = sum(limb << (8 * i) for i, limb in enumerate(limbs))
    return total / (count << 149)


@torch.library.register_fake("pyrl::covariance_sums")
def _(logprobs, advantages, mask):
    return logprobs.new_empty((2 * SUM_LIMBS + 1,), dtype=torch.int64)
