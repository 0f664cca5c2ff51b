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


@dataclass(frozen=True, slots=True)
class Selection:
    """This rank's tokens of one scope, in the order they were given."""

    mask: torch.Tensor | None
    """bool [T], the tokens that the loss acts on; None for a method that selects none and for a ratio of 0."""
    covariance: torch.Tensor
    """fp32 [T], 0 where masked."""
    statistics: CovarianceStatistics
    """Of the covariances over the group."""


def select_tokens(
    loss: LossConfig,
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    token_uids: torch.Tensor,
    *,
    seed: int,
    group: dist.ProcessGroup | None,
    micro_batch_sizes: list[int] | None = None,
) -> Selection:
    """Covariance of every token, and the tokens that `loss` acts on. Collective over the data-parallel `group`.

    All tensors are [T], this rank's tokens of the scope: the concatenated micro-batches of a mini-batch, or of the whole
    rollout batch. With `cov_scope: micro_batch` each part of `micro_batch_sizes` is centred and ranked alone; without it
    the sizes are not read. cov_i = (log pi_i - mean log pi)(A_i - mean A), arXiv 2505.22617 eq. 10. `old_logprobs` None:
    the first update after a rollout. `seed` from `selection_seed`. Raises ValueError as `pyrl.ops` does.
    """
    logprobs, advantages = logprobs.detach(), advantages.detach()
    old_logprobs = logprobs if old_logprobs is None else old_logprobs.detach()
    tensors = (logprobs, old_logprobs, advantages, mask, token_uids)
    if getattr(loss, "cov_scope", "mini_batch") == "micro_batch":
        if micro_batch_sizes is None:
            raise ValueError("micro_batch_sizes: required with cov_scope 'micro_batch', got None")
        parts = zip(*(tensor.split(micro_batch_sizes) for tensor in tensors), strict=True)
        chosen = [_select(loss, *part, seed=seed, group=None) for part in parts]
        selected = None if chosen[0][1] is None else torch.cat([picked for _, picked in chosen])
        covariance = torch.cat([cov for cov, _ in chosen])
    else:
        covariance, selected = _select(loss, *tensors, seed=seed, group=group)
    return Selection(selected, covariance, covariance_statistics(covariance, mask, group=group))


def _select(
    loss: LossConfig,
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    token_uids: torch.Tensor,
    *,
    seed: int,
    group: dist.ProcessGroup | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(covariance, selected) of one scope."""
    covariance = ops.token_covariance(logprobs, advantages, mask, group=group)
    drawn = {"token_uids": token_uids, "seed": seed, "group": group}
    if isinstance(loss, KLCov) and loss.kl_cov_ratio > 0:
        return covariance, ops.select_top(covariance, mask, loss.kl_cov_ratio, **drawn)
    if isinstance(loss, ClipCov) and loss.clip_cov_ratio > 0:
        eligible = ~ppo_clip_binds(logprobs, old_logprobs, advantages, loss.clip_ratio_low, loss.clip_ratio_high)
        lower, upper = loss.clip_cov_lb, loss.clip_cov_ub
        return covariance, ops.select_band(
            covariance, mask, loss.clip_cov_ratio, lower, upper, eligible=eligible, **drawn
        )
    return covariance, None


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
    sums = global_sums(
        {"sum": values.double().sum(), "tokens": values.numel(), "masked_in": mask.sum()}, group, device=values.device
    )
    tokens = int(sums["tokens"])
    not_finite = int(sums["masked_in"]) - tokens
    if tokens == 0:
        return CovarianceStatistics(None, {}, not_finite)
    counts = {name: max(1, int(share * tokens)) for name, share in TOP_SHARES.items()}
    thresholds = dict(zip(counts, kth_largest(values, list(counts.values()), group=group), strict=True))
    above = {name: values[values > t.value].double().sum() for name, t in thresholds.items()}
    top = {
        # ties at the threshold have one value, so which of them belong to the share does not matter
        name: (total + (counts[name] - thresholds[name].above) * thresholds[name].value) / counts[name]
        for name, total in global_sums(above, group, device=values.device).items()
    }
    return CovarianceStatistics(sums["sum"] / tokens, top, not_finite)
