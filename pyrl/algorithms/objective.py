"""The loss of a token: the policy's, with the terms that any of them may have beside it.

    L = w P - entropy_coef H + kl_loss_coef KL

P: `policy_loss`. w = min(pi_old / pi_rollout, C): truncated importance sampling, for what the rollout engine computed
differently. H: full-vocabulary entropy. KL: an estimate of KL(pi || pi_ref). Each but P is off at 0.
"""

from __future__ import annotations

import torch

from pyrl.algorithms.kl import KL_ESTIMATORS
from pyrl.algorithms.policy_loss import policy_loss
from pyrl.algorithms.surrogate import Metrics
from pyrl.config import AlgorithmConfig, LossConfig
from pyrl.types import PackedBatch


def token_objective(
    batch: PackedBatch,
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    *,
    loss: LossConfig,
    algorithm: AlgorithmConfig,
) -> tuple[torch.Tensor, Metrics]:
    """The loss of every token [T], 0 where masked, and metric sums: those of `policy_loss`, and of each term that is on
    `rollout_is_weight_sum`, `rollout_is_capped_tokens`, `entropy_bonus_sum`, `reference_kl_sum`.

    `logprobs` and `entropy` fp32 [T] with gradient; `old_logprobs` None: the policy is its own old policy. Raises
    ValueError as `policy_loss`, and where `batch` has not the log-probs that a term needs.
    """
    mask = batch.response_mask
    total, sums = policy_loss(
        logprobs, old_logprobs, batch.advantages, mask, batch.selected, loss, cu_seqlens=batch.cu_seqlens
    )
    if algorithm.rollout_is_threshold > 0:
        old = logprobs.detach() if old_logprobs is None else old_logprobs
        weights, of_weights = rollout_is_weights(old, batch.rollout_logprobs, mask, algorithm.rollout_is_threshold)
        total, sums = total * weights, sums | of_weights
    if algorithm.entropy_coef > 0:
        bonus = torch.where(mask, algorithm.entropy_coef * entropy, 0.0)
        total, sums = total - bonus, sums | {"entropy_bonus_sum": bonus.detach().double().sum()}
    if algorithm.kl_loss_coef > 0:
        if batch.ref_logprobs is None:
            raise ValueError("ref_logprobs: kl_loss_coef needs the reference's log-probs, got None")
        d = torch.where(mask, logprobs - batch.ref_logprobs, 0.0)
        kl = KL_ESTIMATORS[algorithm.kl_loss_type](d)
        total, sums = total + algorithm.kl_loss_coef * kl, sums | {"reference_kl_sum": kl.detach().double().sum()}
    return total, sums


def rollout_is_weights(
    old_logprobs: torch.Tensor, rollout_logprobs: torch.Tensor | None, mask: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, Metrics]:
    """min(pi_old / pi_rollout, threshold) of each token [T], without gradient, 0 where masked: both under the weights
    that generated it, one by the learner and one by the rollout engine.

    Source: truncated importance sampling (https://fengyao.notion.site/off-policy-rl), as in verl's `rollout_is`. Only
    above 1 can a token gain weight without bound, so only that side is cut.
    """
    if rollout_logprobs is None:
        raise ValueError("rollout_logprobs: rollout_is_threshold needs the rollout's log-probs, got None")
    raw = torch.where(mask, (old_logprobs.detach() - rollout_logprobs).exp(), 0.0)
    weights = raw.clamp(max=threshold)
    return weights, {
        "rollout_is_weight_sum": weights.double().sum(),
        "rollout_is_capped_tokens": (raw > threshold).double().sum(),
    }
