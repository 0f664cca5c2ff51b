"""Surrogates against their papers' equations, token by token in float64 (value and gradient), and what Clip-Cov and
KL-Cov do to each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pyrl.algorithms.aggregate import aggregate, mini_batch_size
from pyrl.algorithms.policy_loss import SURROGATES, clip_binds, policy_loss
from pyrl.config import CISPO, GSPO, ClipCov, ConfigError, KLCov, parse_config
from pyrl.data.packing import pack
from pyrl.types import PackedBatch, Sequence

Literal = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
"""(log pi, log pi_old, A) of one token -> its loss"""


def ppo_clip(new: torch.Tensor, old: torch.Tensor, advantage: float, high: float = 0.2) -> torch.Tensor:
    """-min(r A, clip(r, 0.8, 1 + high) A)"""
    r = torch.exp(new - old)
    return -torch.minimum(r * advantage, r.clamp(0.8, 1 + high) * advantage)


def ratio(new: torch.Tensor, old: torch.Tensor, advantage: float) -> torch.Tensor:
    return -torch.exp(new - old) * advantage


def cispo(new: torch.Tensor, old: torch.Tensor, advantage: float) -> torch.Tensor:
    """-sg(clip(r, 0.9, 1.3)) A log pi"""
    weight = min(max(torch.exp(new - old).item(), 0.9), 1.3)
    return -weight * advantage * new


LITERAL: dict[str, tuple[dict[str, Any], Literal]] = {
    "ppo_clip": ({}, ppo_clip),
    "clip_higher": ({}, lambda new, old, advantage: ppo_clip(new, old, advantage, 0.28)),
    "ratio": ({}, ratio),
    "cispo": ({"clip_ratio_low": 0.1, "clip_ratio_high": 0.3}, cispo),
}


def inputs(count: int = 300) -> tuple[torch.Tensor, ...]:
    """log pi, log pi_old, A, mask, selected; some tokens have d = 0, where |d| has no gradient."""
    g = torch.Generator().manual_seed(2)
    old = -torch.empty(count, dtype=torch.float64).exponential_(generator=g)
    new = old + 0.4 * torch.randn(count, generator=g, dtype=torch.float64) * (torch.rand(count, generator=g) > 0.1)
    advantages = torch.randn(count, generator=g, dtype=torch.float64)
    return new, old, advantages, torch.rand(count, generator=g) > 0.2, torch.rand(count, generator=g) > 0.7


def token_by_token(literal: Literal, on_chosen: Callable[..., torch.Tensor], chosen: torch.Tensor) -> list[float]:
    new, old, advantages, mask, _ = inputs()
    new.requires_grad_()
    losses = []
    for t in range(len(new)):
        loss = literal(new[t], old[t], advantages[t].item()) if mask[t] else new[t] * 0
        losses.append(on_chosen(loss, new[t] - old[t]) if mask[t] and chosen[t] else loss)
    total = torch.stack(losses)
    (gradient,) = torch.autograd.grad(total.sum(), new)
    return torch.stack((total.detach(), gradient))


def found(config: Any, selected: torch.Tensor | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    new, old, advantages, mask, _ = inputs()
    new.requires_grad_()
    loss, sums = policy_loss(new, old, advantages, mask, selected, config)
    (gradient,) = torch.autograd.grad(loss.sum(), new)
    return torch.stack((loss.detach(), gradient)), sums


def config_of(tree: dict[str, Any]) -> Any:
    return parse_config({"model": {"path": "m"}, "data": {"path": "d"}, "loss": tree}).loss


def test_every_surrogate_is_compared() -> None:
    assert LITERAL.keys() == SURROGATES.keys()


@pytest.mark.parametrize("name", LITERAL)
def test_surrogate_equals_its_equation(name: str) -> None:
    settings, literal = LITERAL[name]
    got, sums = found(config_of({"name": name} | settings), None)
    wanted = token_by_token(literal, lambda loss, d: loss, torch.zeros(300, dtype=torch.bool))
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=0)
    new, old, _, mask, _ = inputs()
    d = (new - old)[mask]
    assert sums["ratio_sum"].item() == pytest.approx(d.exp().sum().item(), rel=1e-13)
    assert sums["approx_kl_sum"].item() == pytest.approx((d.exp() - 1 - d).sum().item(), rel=1e-11)
    assert sums["selected_tokens"] == 0 and ("clipped_high_tokens" in sums) == (name != "ratio")
    if name == "cispo":  # its weights are clipped whatever the sign of A
        assert sums["clipped_high_tokens"] == (d.exp() > 1.3).sum() > 0
        assert sums["clipped_low_tokens"] == (d.exp() < 0.9).sum() > 0


@pytest.mark.parametrize("name", LITERAL)
def test_clip_cov_on_every_surrogate_takes_the_chosen_tokens_out(name: str) -> None:
    settings, literal = LITERAL[name]
    *_, mask, selected = inputs()
    got, sums = found(config_of({"name": "clip_cov", "surrogate": {"name": name} | settings}), selected)
    wanted = token_by_token(literal, lambda loss, d: loss * 0, selected)
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=0)
    assert (got[:, mask & selected] == 0).all() and sums["selected_tokens"] == (mask & selected).sum() > 10
    assert "kl_penalty_sum" not in sums


@pytest.mark.parametrize("name", LITERAL)
def test_kl_cov_on_every_surrogate_adds_the_penalty(name: str) -> None:
    settings, literal = LITERAL[name]
    tree = {"name": "kl_cov", "kl_cov_coef": 0.7, "surrogate": {"name": name} | settings}
    new, old, _, mask, selected = inputs()
    got, sums = found(config_of(tree), selected)
    wanted = token_by_token(literal, lambda loss, d: loss + 0.7 * d.abs(), selected)  # |0| has gradient 0 in torch too
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-16)
    penalty = 0.7 * (new - old).abs()[mask & selected].sum().item()
    assert sums["kl_penalty_sum"].item() == pytest.approx(penalty, rel=1e-13) and penalty > 1


def test_a_penalty_below_rounding_has_no_gradient_on_a_torch_surrogate() -> None:
    d = torch.tensor([9e-7, -9e-7, 2e-6, -2e-6], dtype=torch.float64)
    new = (d - 1).requires_grad_()
    config = KLCov(name="kl_cov", surrogate=CISPO(name="cispo"))
    loss, _ = policy_loss(new, torch.full_like(d, -1.0), torch.zeros(4).double(), d > -9, d > -9, config)
    assert torch.autograd.grad(loss.sum(), new)[0].tolist() == [0, 0, 1, -1]
    assert loss.tolist() == pytest.approx(d.abs().tolist(), rel=1e-9)


def test_clip_cov_leaves_out_only_tokens_whose_gradient_the_surrogate_takes() -> None:
    d = torch.tensor([1.0, 0.0, 1.0, 3.0])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    binds = {
        name: clip_binds(d, torch.zeros(4), advantages, ClipCov(name="clip_cov", surrogate=surrogate)).tolist()
        for name, surrogate in {
            "default": None,
            "ppo_clip": {"name": "ppo_clip", "clip_ratio_c": 10.0},
            "cispo": {"name": "cispo"},
            "ratio": {"name": "ratio"},
        }.items()
    }
    assert binds["default"] == [True, False, False, False]  # e > 2
    assert binds["ppo_clip"] == [True, False, False, True]  # e > 1.2; dual clip: e^3 > 10
    assert binds["cispo"] == binds["ratio"] == [False] * 4


def gspo_batches() -> list[PackedBatch]:
    parts = [[(0, 4), (1, 1)], [], [(2, 6)]]
    return [pack([Sequence(i, (1, 1), (2,) * n) for i, n in part], pad_multiple=8) for part in parts]


def test_gspo_equals_its_equation_over_the_mini_batch() -> None:
    """-(1/S) sum_i min(s_i A_i, clip(s_i) A_i), s_i = (pi(y_i) / pi_old(y_i))^(1 / |y_i|); three packings' worth."""
    config, batches = GSPO(name="gspo", clip_ratio_low=0.05, clip_ratio_high=0.06), gspo_batches()
    size = mini_batch_size(batches, None)
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        total, literal, pairs, clipped, bound = 0.0, 0.0, [], 0, 0
        for batch in batches:
            new = (0.3 * torch.randn(len(batch.tokens), generator=g, dtype=torch.float64) - 2).requires_grad_()
            old = torch.where(batch.response_mask, torch.full_like(new, -2.0), torch.nan)
            advantages = torch.full_like(old, torch.nan)
            twin = new.detach().clone().requires_grad_()
            for i in batch.sample_indices:
                own = batch.response_mask & (batch.token_uids >> 24 == i)
                advantage = torch.randn((), generator=g, dtype=torch.float64).item()
                advantages[own] = advantage
                s = torch.exp(torch.sum(twin[own] + 2)) ** (1 / int(own.sum()))
                literal = literal - torch.minimum(s * advantage, s.clamp(0.95, 1.06) * advantage) / 3
                bound = (s < 0.95 if advantage < 0 else s > 1.06) * int(own.sum())
                clipped += int(bound)
            loss, sums = policy_loss(
                new, old, advantages, batch.response_mask, None, config, cu_seqlens=batch.cu_seqlens
            )
            total = total + aggregate(loss, batch, size, mode="seq-mean-token-mean", loss_scale_factor=1)
            clipped -= int(sums["clipped_high_tokens"] + sums["clipped_low_tokens"])
            pairs.append((new, twin))
        assert total.item() == pytest.approx(literal.item(), rel=1e-13) and clipped == 0
        total.backward()
        literal.backward()
        for new, twin in pairs:
            wanted = torch.zeros_like(new) if twin.grad is None else twin.grad
            torch.testing.assert_close(new.grad, wanted, rtol=1e-12, atol=1e-17)


def test_gspo_on_policy_is_the_policy_gradient() -> None:
    batch = gspo_batches()[0]
    new = torch.full((len(batch.tokens),), -2.0, requires_grad=True)
    advantages = torch.where(batch.token_uids >> 24 == 0, 0.5, -2.0)
    mask = batch.response_mask
    config = GSPO(name="gspo")
    loss, sums = policy_loss(new, None, advantages, mask, None, config, cu_seqlens=batch.cu_seqlens)
    assert loss.dtype == torch.float32 and sums["ratio_sum"] == mask.sum()
    (gradient,) = torch.autograd.grad(loss.sum(), new)
    torch.testing.assert_close(gradient, torch.where(mask, -advantages, 0.0))
    with pytest.raises(ValueError, match="cu_seqlens: gspo needs"):
        policy_loss(new, None, advantages, mask, None, config)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"name": "kl_cov", "surrogate": {"name": "gspo"}}, r"single tokens.*'gspo'.*Use ppo_clip"),
        ({"name": "clip_cov", "surrogate": {"name": "gspo"}}, r"single tokens.*'gspo'.*Use ppo_clip"),
        ({"name": "gspo"}, r"gspo is a mean over responses: set algorithm.loss_agg_mode 'token-mean'"),
        (
            {"name": "clip_cov", "clip_ratio_low": 0.2, "surrogate": {"name": "ratio"}},
            r"clip_ratio_low 0.2 .* not used with surrogate 'ratio'",
        ),
        ({"name": "kl_cov", "surrogate": {"name": "cispo", "clip_ratio_hi": 1}}, r"did you mean 'clip_ratio_high'"),
    ],
)
def test_what_does_not_compose_is_refused(loss: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(loss)
