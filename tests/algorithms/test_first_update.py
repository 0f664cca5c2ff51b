"""Updates where log pi is log pi_old: KL-Cov gives chosen tokens the subgradient of least norm, Clip-Cov none."""

from __future__ import annotations

import pytest
import torch

from pyrl.algorithms.policy_loss import policy_loss
from pyrl.config import CISPO, ClipCov, KLCov, PPOClip, Ratio

COEF = 0.7


def tokens(n: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    logprobs = -torch.empty(n, dtype=torch.float64).exponential_(generator=g)
    advantages = torch.randn(n, generator=g, dtype=torch.float64)
    return logprobs.requires_grad_(), advantages, torch.rand(n, generator=g) > 0.2, torch.rand(n, generator=g) > 0.5


@pytest.mark.parametrize("surrogate", [Ratio(), PPOClip(), CISPO(name="cispo")], ids=lambda s: s.name)
def test_the_gradient_is_the_subgradient_nearest_to_zero(surrogate) -> None:
    """Against a search through the subdifferential {-A + coef s, s in [-1, 1]} of each token."""
    logprobs, advantages, mask, selected = tokens()
    config = KLCov(name="kl_cov", kl_cov_coef=COEF, first_update="subgradient", surrogate=surrogate)
    loss, _ = policy_loss(logprobs, None, advantages, mask, selected, config)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    grid = -advantages[:, None] + COEF * torch.linspace(-1, 1, 20001, dtype=torch.float64)
    nearest = grid.gather(1, grid.abs().argmin(1, keepdim=True))[:, 0]
    expected = torch.where(selected, nearest, -advantages) * mask
    torch.testing.assert_close(gradient, expected, rtol=0, atol=COEF * 1e-4)
    chosen = mask & selected
    assert (gradient[chosen] == 0).any() and (gradient[chosen] != 0).any()
    assert torch.equal(gradient[chosen] == 0, advantages[chosen].abs() <= COEF)


def test_a_step_along_it_does_not_raise_the_loss_of_any_token() -> None:
    """To first order, which the published subgradient (that of 0, s = 0) does where |A| < coef."""
    logprobs, advantages, mask, selected = tokens()

    def value(moved: torch.Tensor) -> torch.Tensor:
        d = moved - logprobs.detach()
        return -d.exp() * advantages + COEF * d.abs() * selected

    def change(first_update: str) -> torch.Tensor:
        config = KLCov(name="kl_cov", kl_cov_coef=COEF, first_update=first_update)
        loss, _ = policy_loss(logprobs, None, advantages, mask, selected, config)
        (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
        return (value(logprobs.detach() - 1e-6 * gradient) - value(logprobs.detach()))[mask]

    assert (change("subgradient") <= 1e-14).all()
    assert (change("unpenalized") > 1e-9).any()


def test_later_updates_and_other_tokens_are_as_published() -> None:
    logprobs, advantages, mask, selected = tokens()
    both = [KLCov(name="kl_cov", kl_cov_coef=COEF, first_update=name) for name in ("unpenalized", "subgradient")]
    old = logprobs.detach() + 0.01
    published, changed = (policy_loss(logprobs, old, advantages, mask, selected, config)[0] for config in both)
    assert torch.equal(published, changed)
    published, changed = (policy_loss(logprobs, None, advantages, mask, None, config)[0] for config in both)
    assert torch.equal(published, changed)


def test_clip_cov_acts_in_first_updates_too() -> None:
    """With one update a rollout every update is a first one. Drawn tokens lose their gradient, others keep theirs."""
    logprobs, advantages, mask, selected = tokens()
    loss, _ = policy_loss(logprobs, None, advantages, mask, selected, ClipCov(name="clip_cov"))
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    torch.testing.assert_close(gradient, torch.where(mask & ~selected, -advantages, 0.0), rtol=1e-12, atol=0)
