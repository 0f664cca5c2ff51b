"""The terms beside the policy loss against their equations in float64 (value and gradient), and what is refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from pyrl.algorithms.kl import KL_ESTIMATORS
from pyrl.algorithms.objective import token_objective
from pyrl.config import ConfigError, RunConfig, parse_config
from pyrl.data.packing import pack
from pyrl.types import PackedBatch, Sequence

ON = {"entropy_coef": 0.3, "kl_loss_coef": 0.7, "rollout_is_threshold": 2.0}


def run_config(loss: dict[str, Any] | None = None, **algorithm: Any) -> RunConfig:
    tree = {"model": {"path": "m"}, "data": {"path": "d"}, "algorithm": algorithm, "loss": loss or {"name": "ratio"}}
    return parse_config(tree)


def inputs() -> tuple[PackedBatch, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch in float64, log pi, entropy and log pi_old; garbage where masked."""
    g = torch.Generator().manual_seed(4)
    batch = pack([Sequence(i, (1,) * 3, (2,) * (20 + i), rollout_logprobs=(-1.0,) * (20 + i)) for i in range(4)])
    noise = [torch.randn(len(batch.tokens), generator=g, dtype=torch.float64) for _ in range(5)]
    mask = batch.response_mask
    old, rollout = noise[0] - 3, noise[0] - 3 + 0.6 * noise[1]
    batch.advantages = torch.where(mask, noise[2], torch.nan)
    batch.rollout_logprobs = torch.where(mask, rollout, torch.nan)
    batch.ref_logprobs = torch.where(mask, noise[0] - 3 + 0.5 * noise[3], torch.nan)
    logprobs = torch.where(mask, old + 0.2 * noise[4], 0.0).requires_grad_()
    entropy = torch.where(mask, noise[1].square(), 0.0).requires_grad_()
    return batch, logprobs, entropy, torch.where(mask, old, torch.nan)


def literal(
    batch: PackedBatch, logprobs: torch.Tensor, entropy: torch.Tensor, old: torch.Tensor, kind: str, terms: dict
) -> torch.Tensor:
    """Sum over tokens of w P - alpha H + beta KL, written out token by token."""
    total = torch.zeros((), dtype=torch.float64)
    for t in torch.where(batch.response_mask)[0].tolist():
        loss = -torch.exp(logprobs[t] - old[t]) * batch.advantages[t]
        if "rollout_is_threshold" in terms:
            loss = loss * min(math.exp(old[t].item() - batch.rollout_logprobs[t].item()), 2.0)
        if "entropy_coef" in terms:
            loss = loss - 0.3 * entropy[t]
        if "kl_loss_coef" in terms:
            log_r = batch.ref_logprobs[t] - logprobs[t]
            loss = loss + 0.7 * {"k1": -log_r, "k2": log_r**2 / 2, "k3": torch.exp(log_r) - 1 - log_r}[kind]
        total = total + loss
    return total


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("terms", "kind"),
    [(("entropy_coef",), "k3"), (("rollout_is_threshold",), "k3"), *((("kl_loss_coef",), k) for k in KL_ESTIMATORS),
     (tuple(ON), "k2")],
)  # fmt: skip
def test_terms_equal_their_equations(terms: tuple[str, ...], kind: str, first: bool) -> None:
    chosen = {name: ON[name] for name in terms}
    config = run_config(**chosen, kl_loss_type=kind)
    batch, logprobs, entropy, old = inputs()
    previous = None if first else old
    loss, sums = token_objective(batch, logprobs, entropy, previous, loss=config.loss, algorithm=config.algorithm)
    assert (loss[~batch.response_mask] == 0).all()
    wanted = literal(batch, logprobs, entropy, logprobs.detach() if first else old, kind, chosen)
    assert loss.sum().item() == pytest.approx(wanted.item(), rel=1e-12)
    for value in (logprobs, entropy):
        got, expected = (
            torch.autograd.grad(total, value, retain_graph=True, allow_unused=True)[0] for total in (loss.sum(), wanted)
        )
        assert (got is None) == (expected is None) == (value is entropy and "entropy_coef" not in terms)
        if got is not None:
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)
    names = {"rollout_is_threshold": "rollout_is_weight_sum", "entropy_coef": "entropy_bonus_sum",
             "kl_loss_coef": "reference_kl_sum"}  # fmt: skip
    assert {term for term, name in names.items() if name in sums} == set(terms)


def test_weights_are_cut_at_the_threshold_alone() -> None:
    config = run_config(rollout_is_threshold=2.0)
    batch, logprobs, entropy, old = inputs()
    _, sums = token_objective(batch, logprobs, entropy, old, loss=config.loss, algorithm=config.algorithm)
    raw = (old - batch.rollout_logprobs)[batch.response_mask].exp()
    assert (raw > 2).sum() > 3 and (raw < 0.5).sum() > 3
    assert sums["rollout_is_capped_tokens"] == (raw > 2).sum()
    assert sums["rollout_is_weight_sum"].item() == pytest.approx(raw.clamp(max=2).sum().item(), rel=1e-14)


def test_the_weight_scales_the_penalty_of_kl_cov_and_not_the_other_terms() -> None:
    loss = {"name": "kl_cov", "kl_cov_coef": 0.5}
    batch, logprobs, entropy, old = inputs()
    batch.selected = batch.token_uids % 3 == 0
    results = {}
    for name, terms in {"plain": {}, "weighed": {"rollout_is_threshold": 2.0}, "both": ON}.items():
        config = run_config(loss, **terms)
        results[name], _ = token_objective(batch, logprobs, entropy, old, loss=config.loss, algorithm=config.algorithm)
    mask = batch.response_mask
    weights = torch.where(mask, (old - batch.rollout_logprobs).exp().clamp(max=2), 0.0)
    torch.testing.assert_close(results["weighed"], results["plain"] * weights)
    d = torch.where(mask, logprobs - batch.ref_logprobs, 0.0)
    beside = torch.where(mask, 0.7 * (torch.exp(-d) - 1 + d) - 0.3 * entropy, 0.0)
    torch.testing.assert_close(results["both"], results["weighed"] + beside)


def test_what_is_missing_or_contradictory_is_refused() -> None:
    batch, logprobs, entropy, old = inputs()
    for term, field in (("kl_loss_coef", "ref_logprobs"), ("rollout_is_threshold", "rollout_logprobs")):
        config = run_config(**{term: 2.0})
        with pytest.raises(ValueError, match=f"{field}: {term} needs"):
            token_objective(
                dataclasses.replace(batch, **{field: None}), logprobs, entropy, old, loss=config.loss,
                algorithm=config.algorithm,
            )  # fmt: skip
    with pytest.raises(ConfigError, match=r"rollout_is_threshold 0.5 would cut the weight 1.*use 1 or more, or 0"):
        run_config(rollout_is_threshold=0.5)
