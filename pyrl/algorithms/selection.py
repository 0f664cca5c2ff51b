"""Which tokens Clip-Cov and KL-Cov act on, and how covariance is distributed.

How this differs from the published code: tokens are centred and ranked over the whole scope (`loss.cov_scope`, default
the optimizer mini-batch on every data-parallel rank), ratios are fractions with 0 meaning off, and Clip-Cov's draw is a
function of (run seed, step, mini-batch, token), so the choice is the same for every layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from pyrl import ops
from pyrl.algorithms.metrics import global_sums
from pyrl.algorithms.order_statistics import kth_largest
from pyrl.algorithms.policy_loss import ppo_clip_binds
from pyrl.config import ClipCov, KLCov, LossConfig

TOP_SHARES = {"0p02": 2e-4, "0p2": 2e-3, "2": 2e-2, "20": 0.2, "50": 0.5}
"""Shares of table 1 of arXiv 2505.22617; the key is the percentage in the metric's name."""


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
    which the PPO clip does not bind. k = max(1, floor(ratio n)), n valid tokens of the scope. `seed`: `selection_seed`.
    Collective, unless the scope is one micro-batch. Raises ValueError as `pyrl.ops.select_top` and `select_band` do.
    """
    drawn = {"token_uids": token_uids, "seed": seed, "group": _scope_group(loss, group)}
    if isinstance(loss, KLCov) and loss.kl_cov_ratio > 0:
        return ops.select_top(covariance, mask, loss.kl_cov_ratio, **drawn)
    if isinstance(loss, ClipCov) and loss.clip_cov_ratio > 0:
        eligible = ~ppo_clip_binds(logprobs, old_logprobs, advantages, loss.clip_ratio_low, loss.clip_ratio_high)
        lower, upper = loss.clip_cov_lb, loss.clip_cov_ub
        return ops.select_band(covariance, mask, loss.clip_cov_ratio, lower, upper, eligible=eligible, **drawn)
    return None


def _scope_group(loss: LossConfig, group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    return None if getattr(loss, "cov_scope", "mini_batch") == "micro_batch" else group


@dataclass(frozen=True, slots=True)
class CovarianceStatistics:
    """Distribution of token covariance over all valid tokens of the group; None where there is none."""

    mean: float | None
    top: dict[str, float]
    """Mean over the largest max(1, floor(share n)) covariances, for each of `TOP_SHARES`; empty without tokens."""
    not_finite: int
    """Valid tokens whose covariance is not finite; they are left out of the means."""

    def metrics(self) -> dict[str, float | int | None]:
        """As fields of the step record."""
        tails = {f"covariance_top_{name}_percent": self.top.get(name) for name in TOP_SHARES}
        return {"covariance_mean": self.mean, **tails, "covariance_not_finite_tokens": self.not_finite}


def covariance_statistics(
    covariance: torch.Tensor, mask: torch.Tensor, *, group: dist.ProcessGroup | None
) -> CovarianceStatistics:
    """Mean and tail means of `covariance` (fp32 [T]) over `mask` (bool [T]) and the group, exact. Collective."""
    values = covariance[mask & covariance.isfinite()]
    counted = {"sum": values.double().sum(), "tokens": float(values.numel()), "valid": mask.sum()}
    sums = global_sums(counted, group, device=values.device)
    tokens = int(sums["tokens"])
    not_finite = int(sums["valid"]) - tokens
    if tokens == 0:
        return CovarianceStatistics(None, {}, not_finite)
    sizes = {name: max(1, int(share * tokens)) for name, share in TOP_SHARES.items()}
    thresholds = dict(zip(sizes, kth_largest(values, list(sizes.values()), group=group), strict=True))
    above = {name: values[values > kth.value].double().sum() for name, kth in thresholds.items()}
    top = {
        # ties at the threshold share one value, so it does not matter which of them belong to the top
        name: (total + (sizes[name] - thresholds[name].above) * thresholds[name].value) / sizes[name]
        for name, total in global_sums(above, group, device=values.device).items()
    }
    return CovarianceStatistics(sums["sum"] / tokens, {name: top[name] for name in TOP_SHARES}, not_finite)
