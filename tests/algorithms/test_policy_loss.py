"""The clipped surrogates against PPO's definition by autograd through torch.maximum, and the metric sums."""

from typing import get_args

import pytest
import torch

from pyrl.algorithms.policy_loss import POLICY_LOSSES, policy_loss, ppo_clip_binds
from pyrl.config import CISPO, ClipCov, ClipHigher, KLCov, LossConfig, PPOClip, Ratio

CONFIGS = {
    "ppo_clip": PPOClip(),
    "clip_higher": ClipHigher(name="clip_higher"),
    "clip_cov": ClipCov(name="clip_cov"),
    "kl_cov": KLCov(name="kl_cov"),
    "ratio": Ratio(),
    "cispo": CISPO(name="cispo"),
}


def inputs(n=200, seed=0):
    g = torch.Generator().manual_seed(seed)
    old = -torch.empty(n, dtype=torch.float64).exponential_(generator=g)
    logprobs = (old + 0.4 * torch.randn(n, generator=g, dtype=torch.float64)).requires_grad_()
    return logprobs, old, torch.randn(n, generator=g, dtype=torch.float64), torch.rand(n, generator=g) > 0.3


def test_every_configured_loss_is_registered():
    union = get_args(get_args(LossConfig)[0])
    names = {get_args(section.model_fields["name"].annotation)[0] for section in union}
    assert set(POLICY_LOSSES) == names == {*CONFIGS, "gspo"}


@pytest.mark.parametrize("name", ["ppo_clip", "clip_higher"])
def test_clipped_losses_equal_their_definition(name):
    logprobs, old, advantages, mask = inputs()
    config = CONFIGS[name]
    loss, metrics = policy_loss(logprobs, old, advantages, mask, None, config)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    ratio = (logprobs - old).exp()
    clipped = ratio.clamp(1 - config.clip_ratio_low, 1 + config.clip_ratio_high)
    expected = torch.maximum(-ratio * advantages, -clipped * advantages) * mask
    (expected_gradient,) = torch.autograd.grad(expected.sum(), logprobs)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-14, atol=0)
    above = mask & (advantages > 0) & (ratio > 1 + config.clip_ratio_high)
    below = mask & (advantages < 0) & (ratio < 1 - config.clip_ratio_low)
    assert above.any() and below.any()
    assert (metrics["clipped_high_tokens"], metrics["clipped_low_tokens"]) == (above.sum(), below.sum())


def test_clip_higher_differs_in_its_upper_bound():
    logprobs = torch.tensor([0.25, 0.25], dtype=torch.float64).exp().log().requires_grad_()  # ratio e^0.25 = 1.284
    advantages, mask = torch.tensor([1.0, -1.0], dtype=torch.float64), torch.tensor([True, True])
    old = torch.zeros(2, dtype=torch.float64) + 0.01  # ratio e^0.24 = 1.271, between 1.2 and 1.28
    for name, gradient in (("ppo_clip", 0.0), ("clip_higher", -1.2712491503214047)):
        loss, _ = policy_loss(logprobs, old, advantages, mask, None, CONFIGS[name])
        (found,) = torch.autograd.grad(loss[0], logprobs)
        assert found[0].item() == pytest.approx(gradient, rel=1e-12)


def test_paper_clip_binds_only_above_two():
    """Bounds 1 and 1 clip the ratio to [0, 2]: for A < 0 never, for A > 0 above 2."""
    logprobs = torch.tensor([2.1, 2.1, 1.9, 1e-9]).log()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert ppo_clip_binds(logprobs, torch.zeros(4), advantages, 1.0, 1.0).tolist() == [True, False, False, False]


def test_dual_clip_is_off_by_default_and_bounds_the_loss_of_bad_tokens():
    logprobs = torch.tensor([10.0, 10.0], dtype=torch.float64).log().requires_grad_()  # ratio 10
    advantages, mask = torch.tensor([-1.0, 1.0], dtype=torch.float64), torch.tensor([True, True])
    for config, losses, gradients in ((PPOClip(), [10, -1.2], [10, 0]), (PPOClip(clip_ratio_c=3), [3, -1.2], [0, 0])):
        loss, metrics = policy_loss(logprobs, torch.zeros(2).double(), advantages, mask, None, config)
        assert loss.tolist() == pytest.approx(losses)
        assert torch.autograd.grad(loss.sum(), logprobs)[0].tolist() == pytest.approx(gradients)
        assert metrics["clipped_high_tokens"] == gradients.count(0)
    with pytest.raises(ValueError, match=r"clip_ratio_c 0\.5 must be above 1, or 0 for off"):
        PPOClip(clip_ratio_c=0.5)


@pytest.mark.parametrize("name", CONFIGS)
def test_masked_garbage_reaches_neither_loss_nor_gradient_nor_metrics(name):
    logprobs, old, advantages, mask = inputs()
    selected = mask.clone() if "cov" in name else None
    clean, clean_metrics = policy_loss(logprobs, old, advantages, mask, selected, CONFIGS[name])
    dirty_old = torch.where(mask, old, float("nan"))
    dirty_advantages = torch.where(mask, advantages, float("inf"))
    if selected is not None:
        selected = torch.ones_like(mask)
    dirty, metrics = policy_loss(logprobs, dirty_old, dirty_advantages, mask, selected, CONFIGS[name])
    assert torch.equal(dirty, clean)
    assert torch.equal(*(torch.autograd.grad(x.sum(), logprobs)[0] for x in (dirty, clean)))
    assert metrics == clean_metrics


@pytest.mark.parametrize("name", CONFIGS)
def test_on_policy_gradient_is_minus_the_advantage(name):
    logprobs, _, advantages, mask = inputs()
    loss, metrics = policy_loss(logprobs, None, advantages, mask, None, CONFIGS[name])
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert torch.equal(gradient, torch.where(mask, -advantages, 0.0))
    assert metrics["ratio_sum"] == mask.sum() and metrics["approx_kl_sum"] == 0


def test_ratio_metrics():
    logprobs, old, advantages, mask = inputs()
    _, metrics = policy_loss(logprobs, old, advantages, mask, None, CONFIGS["kl_cov"])
    d = (logprobs - old).detach()[mask]
    assert metrics["ratio_sum"].item() == pytest.approx(d.exp().sum().item())
    assert metrics["approx_kl_sum"].item() == pytest.approx((d.exp() - 1 - d).sum().item())


def test_bad_arguments_are_named():
    logprobs, old, advantages, mask = inputs()
    with pytest.raises(ValueError, match=r"old_logprobs: got torch.float64 \[3\].*wanted torch.float64 \[200\]"):
        policy_loss(logprobs, old[:3], advantages, mask, None, CONFIGS["ppo_clip"])
    with pytest.raises(ValueError, match=r"mask: got torch\.float64"):
        policy_loss(logprobs, old, advantages, mask.double(), None, CONFIGS["ppo_clip"])
    with pytest.raises(ValueError, match="ppo_clip selects no token"):
        policy_loss(logprobs, old, advantages, mask, mask, CONFIGS["ppo_clip"])
