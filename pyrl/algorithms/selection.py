"""Which tokens Clip-Cov and KL-Cov act on, and how covariance is distributed.

How this differs from the published code: tokens are centred and ranked over the whole scope (`loss.cov_scope`, default
the optimizer mini-batch on every data-parallel rank), ratios are fractions with 0 meaning off, and Clip-Cov's draw is a
function of (run seed, step, mini-batch, token), so the choice is the same for every layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pyrl import ops
from pyrl.algorithms.metrics import global_sums
from pyrl.algorithms.order_statistics import kth_largest
from pyrl.algorithms.policy_loss import clip_binds
from pyrl.config import ClipCov, KLCov, LossConfig
from pyrl.ops.counter import derive_seed
from pyrl.telemetry.names import COVARIANCE_TOP_SHARES, covariance_top_name

EVERY_COVARIANCE = (-math.inf, math.inf)
"""A band."""


def selection_seed(run_seed: int, step: int, mini_batch: int) -> int:
    """The seed of one selection: it depends on the run's seed, the step and the mini-batch alone."""
    return derive_seed(run_seed, step=step, mini_batch=mini_batch, purpose="select_tokens")


def token_covariance(
    logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    loss: LossConfig,
    group: dist.ProcessGroup | None,
) -> torch.Tensor:
    """cov_i = (log pi_i - mean log pi)(A_i - mean A), arXiv 2505.22617 eq. 10, means over the scope of `loss`.

    All tensors hold this rank's tokens of the scope, [T]. Returns fp32 [T], detached, 0 where masked. `group`: the
    data-parallel group; with `cov_scope: micro_batch` it is not used, and the tensors are one micro-batch.
    """
    return ops.token_covariance(logprobs.detach(), advantages, mask, group=_scope_group(loss, group))


def select_tokens(
    loss: LossConfig,
    covariance: torch.Tensor,
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    token_uids: torch.Tensor,
    *,
    seed: int,
    group: dist.ProcessGroup | None,
) -> torch.Tensor | None:
    """The tokens that `loss` acts on, bool [T]; None for a method that selects none and for a ratio of 0.

    KL-Cov: the k largest of `covariance` (from `token_covariance`). Clip-Cov: k drawn among those inside the band on
    which the PPO clip does not bind. With `chosen_by: random` either draws k among all, Clip-Cov among all on which the
    PPO clip does not bind. k = max(1, floor(ratio n)), n valid tokens of the scope. `seed`: `selection_seed`.
    Collective, unless the scope is one micro-batch. Raises ValueError as `pyrl.ops.select_top` and `select_band` do.
    """
    drawn = {"token_uids": token_uids, "seed": seed, "group": _scope_group(loss, group)}
    if isinstance(loss, KLCov) and loss.kl_cov_ratio > 0:
        if loss.chosen_by == "random":
            return ops.select_band(covariance, mask, loss.kl_cov_ratio, *EVERY_COVARIANCE, **drawn)
        return ops.select_top(covariance, mask, loss.kl_cov_ratio, **drawn)
    if isinstance(loss, ClipCov) and loss.clip_cov_ratio > 0:
        eligible = ~clip_binds(logprobs, old_logprobs, advantages, loss)
        band = EVERY_COVARIANCE if loss.chosen_by == "random" else (loss.clip_cov_lb, loss.clip_cov_ub)
        return ops.select_band(covariance, mask, loss.clip_cov_ratio, *band, eligible=eligible, **drawn)
    return None


def _scope_group(loss: LossConfig, group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    return None if getattr(loss, "cov_scope", "mini_batch") == "micro_batch" else group


@dataclass(frozen=True, slots=True)
class CovarianceStatistics:
    """Distribution of token covariance over all valid tokens of the group; None where there is none."""

    mean: float | None
    top: dict[float, float | None]
    """For each of `COVARIANCE_TOP_SHARES` the mean over the largest max(1, floor(share n)) covariances."""

    def metrics(self) -> dict[str, float | None]:
        """As fields of the step record."""
        return {"covariance_mean": self.mean} | {covariance_top_name(share): m for share, m in self.top.items()}


def covariance_statistics(
    covariance: torch.Tensor, mask: torch.Tensor, *, group: dist.ProcessGroup | None
) -> CovarianceStatistics:
    """Mean and tail means of `covariance` (fp32 [T]) over `mask` (bool [T]) and the group, exact. Collective.

    Raises ValueError on every rank when a valid token's covariance is not finite.
    """
    values = covariance[mask]
    broken = (~values.isfinite()).sum()
    counted = {"sum": values.double().sum(), "tokens": float(values.numel()), "broken": broken}
    sums = global_sums(counted, group, device=values.device)
    if sums["broken"]:
        raise ValueError(f"covariance: not finite for {int(sums['broken'])} of {int(sums['tokens'])} valid tokens")
    tokens = int(sums["tokens"])
    if tokens == 0:
        return CovarianceStatistics(None, dict.fromkeys(COVARIANCE_TOP_SHARES))
    sizes = [max(1, int(share * tokens)) for share in COVARIANCE_TOP_SHARES]
    thresholds = kth_largest(values, sizes, group=group)
    above = {str(i): values[values > kth.value].double().sum() for i, kth in enumerate(thresholds)}
    totals = global_sums(above, group, device=values.device)
    top = [
        # ties at the threshold have one value, so it does not matter which of them belong to the top
        (totals[str(i)] + (size - kth.above) * kth.value) / size
        for i, (size, kth) in enumerate(zip(sizes, thresholds, strict=True))
    ]
    return CovarianceStatistics(sums["sum"] / tokens, dict(zip(COVARIANCE_TOP_SHARES, top, strict=True)))
