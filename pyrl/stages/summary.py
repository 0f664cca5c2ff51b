"""What the updates of one step amount to in its record."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from pyrl.algorithms.selection import CovarianceStatistics
from pyrl.config import LossConfig
from pyrl.types import StepRecord


@dataclass(frozen=True, slots=True)
class UpdateSummary:
    """One optimizer update, over all ranks."""

    tokens: int
    """Valid tokens of the mini-batch."""
    grad_norm: float
    sums: dict[str, float]
    """`loss`, and the sums that `policy_loss` reports."""
    covariance: CovarianceStatistics
    quadrants: dict[str, float | None]
    """From `covariance_quadrants`."""


def summarize_updates(updates: list[UpdateSummary], loss: LossConfig) -> StepRecord:
    """Optimization and covariance fields of the step record; null where the method has no such thing."""
    reported = updates[0].sums.keys()
    selects, clips = hasattr(loss, "cov_scope"), "clipped_high_tokens" in reported
    selected = [int(u.sums["selected_tokens"]) for u in updates]
    record: StepRecord = {
        "loss": fmean(u.sums["loss"] for u in updates),
        "loss_updates": [u.sums["loss"] for u in updates],
        "grad_norm": fmean(u.grad_norm for u in updates),
        "grad_norm_updates": [u.grad_norm for u in updates],
        "selected_tokens": sum(selected) if selects else None,
        "selected_tokens_updates": selected if selects else None,
        "ratio_mean": _token_mean(updates, "ratio_sum"),
        "approx_kl": _token_mean(updates, "approx_kl_sum"),
        "kl_penalty": _token_mean(updates, "kl_penalty_sum") if "kl_penalty_sum" in reported else None,
        "clip_fraction_low": _token_mean(updates, "clipped_low_tokens") if clips else None,
        "clip_fraction_high": _token_mean(updates, "clipped_high_tokens") if clips else None,
    }
    for name in ("entropy_bonus", "reference_kl"):
        record[name] = _token_mean(updates, f"{name}_sum") if f"{name}_sum" in reported else None
    corrected = "rollout_is_weight_sum" in reported
    record["rollout_is_weight_mean"] = _token_mean(updates, "rollout_is_weight_sum") if corrected else None
    record["rollout_is_capped_fraction"] = _token_mean(updates, "rollout_is_capped_tokens") if corrected else None
    record["clip_fraction"] = record["clip_fraction_low"] + record["clip_fraction_high"] if clips else None
    return record | _mean_of([u.covariance.metrics() | u.quadrants for u in updates])


def _token_mean(updates: list[UpdateSummary], name: str) -> float:
    """Mean over the tokens of an update, then over updates."""
    return fmean(u.sums[name] / u.tokens for u in updates)


def _mean_of(rows: list[dict[str, float | int | None]]) -> StepRecord:
    means: StepRecord = {}
    for name in rows[0]:
        values = [row[name] for row in rows if row[name] is not None]
        means[name] = fmean(values) if values else None
    return means
