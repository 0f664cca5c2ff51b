"""KL-Cov and Clip-Cov, selection and loss together, against a literal float64 transcription: value and gradient.

VALUE_TOLERANCE: a mean of at most 240 fp32 terms of size 1, summed with a few roundings of 6e-8 of the partial sum.
GRADIENT_TOLERANCE: one fp32 product of exp(d) and A, a few roundings, relative to the largest gradient.
"""

from dataclasses import dataclass

import pytest
import torch

from pyrl.algorithms.aggregate import global_token_count, token_mean
from pyrl.algorithms.policy_loss import policy_loss
from pyrl.algorithms.selection import select_tokens, selection_seed, token_covariance
from pyrl.config import ClipCov, KLCov

from . import paper

VALUE_TOLERANCE = 2e-6
GRADIENT_TOLERANCE = 1e-6


@dataclass
class Batch:
    logprobs: torch.Tensor
    old: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    uids: torch.Tensor

    def literal(self):
        """Float64 scalar log-probs with gradient, and the rest as lists."""
        leaves = [x.double().clone().requires_grad_() for x in self.logprobs]
        return leaves, [x.double() for x in self.old], self.advantages.double().tolist(), self.mask.tolist()


def make_batch(seed, *, responses=8, tokens=30, drift=0.3, masked=0.2) -> Batch:
    """Responses of one advantage each; `drift` is the size of log pi - log pi_old."""
    g = torch.Generator().manual_seed(seed)
    n = responses * tokens
    logprobs = -torch.empty(n).exponential_(1.0, generator=g)
    old = logprobs + drift * torch.randn(n, generator=g)
    advantages = torch.randn(responses, generator=g).repeat_interleave(tokens) * 2
    mask = torch.rand(n, generator=g) >= masked
    index = torch.arange(n)
    uids = (index // tokens) * 2**24 + index % tokens
    zeroed = (torch.where(mask, x, 0.0) for x in (logprobs, old, advantages))
    return Batch(*zeroed, mask, torch.where(mask, uids, -1))


def ours(batch: Batch, config, *, first_update=False, step=0):
    """(loss, gradient, selected) of the product on one micro-batch."""
    leaf = batch.logprobs.clone().requires_grad_()
    old = None if first_update else batch.old
    cov = token_covariance(leaf, batch.advantages, batch.mask, loss=config, group=None)
    selected = select_tokens(
        config, cov, leaf.detach(), leaf.detach() if first_update else batch.old, batch.advantages, batch.mask,
        batch.uids, seed=selection_seed(7, step, 0), group=None,
    )  # fmt: skip
    loss, metrics = policy_loss(leaf, old, batch.advantages, batch.mask, selected, config)
    total = token_mean(loss, batch.mask, global_token_count([batch.mask], None))
    total.backward()
    assert loss[~batch.mask].eq(0).all() and leaf.grad[~batch.mask].eq(0).all()
    chosen = set() if selected is None else set(selected.nonzero().flatten().tolist())
    assert int(metrics["selected_tokens"]) == len(chosen)
    return total.item(), leaf.grad, chosen


def assert_same(value, gradient, literal_loss, leaves):
    if literal_loss.requires_grad:  # not when every token is chosen
        literal_loss.backward()
    expected = torch.stack([torch.zeros((), dtype=torch.float64) if x.grad is None else x.grad for x in leaves])
    assert abs(value - literal_loss.item()) <= VALUE_TOLERANCE
    assert (gradient - expected).abs().max() <= GRADIENT_TOLERANCE * max(1.0, expected.abs().max())


def check_kl_cov(batch, config, *, first_update=False):
    value, gradient, chosen = ours(batch, config, first_update=first_update)
    leaves, old, advantages, mask = batch.literal()
    if first_update:
        old = [x.detach() for x in leaves]
    cov = paper.covariance(leaves, advantages, mask)
    ranked = sorted((c for c in cov if c is not None), reverse=True)
    count = paper.selected_count(config.kl_cov_ratio, mask)
    # which of several equal covariances is taken is ours to decide: the covariances taken are the k largest
    assert sorted((cov[i] for i in chosen), reverse=True) == pytest.approx(ranked[:count], abs=1e-6)
    assert_same(
        value, gradient, paper.kl_cov_loss(leaves, old, advantages, mask, chosen, coef=config.kl_cov_coef), leaves
    )
    return chosen


def check_clip_cov(batch, config, *, first_update=False):
    value, gradient, chosen = ours(batch, config, first_update=first_update)
    leaves, old, advantages, mask = batch.literal()
    if first_update:
        old = [x.detach() for x in leaves]
    bounds = {"low": config.clip_ratio_low, "high": config.clip_ratio_high}
    band = {"lower": config.clip_cov_lb, "upper": config.clip_cov_ub}
    cov = paper.covariance(leaves, advantages, mask)
    candidates = paper.clip_cov_candidates(cov, leaves, old, advantages, mask, **band, **bounds)
    assert chosen <= candidates
    assert len(chosen) == min(len(candidates), paper.selected_count(config.clip_cov_ratio, mask))
    assert all(gradient[i] == 0 for i in chosen)
    assert_same(value, gradient, paper.clip_cov_loss(leaves, old, advantages, mask, chosen, **bounds), leaves)
    return chosen, candidates


def kl(**settings):
    return KLCov(**({"name": "kl_cov", "kl_cov_ratio": 0.05} | settings))


def clip(**settings):
    return ClipCov(**({"name": "clip_cov", "clip_cov_ratio": 0.05, "clip_cov_lb": 0.2, "clip_cov_ub": 3.0} | settings))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("coef", [1.0, 0.1, 0.0])
def test_kl_cov_equals_the_paper(seed, coef):
    assert len(check_kl_cov(make_batch(seed), kl(kl_cov_coef=coef))) > 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bounds", [(1.0, 1.0), (0.2, 0.28), (0.1, 0.1)])
def test_clip_cov_equals_the_paper(seed, bounds):
    low, high = bounds
    chosen, candidates = check_clip_cov(make_batch(seed), clip(clip_ratio_low=low, clip_ratio_high=high))
    assert 1 < len(chosen) < len(candidates)  # a real draw


def test_a_ratio_so_small_that_k_is_one():
    assert len(check_kl_cov(make_batch(0), kl(kl_cov_ratio=2e-4))) == 1
    assert len(check_clip_cov(make_batch(0), clip(clip_cov_ratio=2e-4))[0]) == 1


def test_ratio_zero_is_off():
    assert check_kl_cov(make_batch(1), kl(kl_cov_ratio=0.0)) == set()
    assert check_clip_cov(make_batch(1), clip(clip_cov_ratio=0.0))[0] == set()


def test_ratio_one_takes_every_valid_token():
    batch = make_batch(1)
    assert len(check_kl_cov(batch, kl(kl_cov_ratio=1.0))) == int(batch.mask.sum())


def test_no_token_in_the_band():
    assert check_clip_cov(make_batch(2), clip(clip_cov_lb=1e4, clip_cov_ub=2e4)) == (set(), set())


def test_a_band_edge_is_outside():
    """(log pi, A) = (-1, 1) and (-3, -1): centred (1, 1) and (-1, -1), so both covariances are exactly 1."""
    batch = Batch(
        torch.tensor([-1.0, -3.0]), torch.tensor([-1.0, -3.0]), torch.tensor([1.0, -1.0]),
        torch.tensor([True, True]), torch.tensor([0, 2**24]),
    )  # fmt: skip
    assert check_clip_cov(batch, clip(clip_cov_ratio=1.0, clip_cov_lb=1.0, clip_cov_ub=5.0))[0] == set()
    assert check_clip_cov(batch, clip(clip_cov_ratio=1.0, clip_cov_lb=0.0, clip_cov_ub=1.0))[0] == set()
    assert check_clip_cov(batch, clip(clip_cov_ratio=1.0, clip_cov_lb=0.99, clip_cov_ub=1.01))[0] == {0, 1}


@pytest.mark.parametrize("config", [kl(), clip()], ids=["kl_cov", "clip_cov"])
def test_all_tokens_masked(config):
    batch = make_batch(3, masked=1.1)
    leaf = batch.logprobs.clone().requires_grad_()
    cov = token_covariance(leaf, batch.advantages, batch.mask, loss=config, group=None)
    selected = select_tokens(
        config, cov, leaf.detach(), batch.old, batch.advantages, batch.mask, batch.uids, seed=0, group=None
    )
    assert not selected.any()
    loss, metrics = policy_loss(leaf, batch.old, batch.advantages, batch.mask, selected, config)
    loss.sum().backward()
    assert not loss.any() and not leaf.grad.any()
    assert all(value == 0 for value in metrics.values())
    with pytest.raises(ValueError, match="at least 1 valid token"):
        token_mean(loss, batch.mask, global_token_count([batch.mask], None))


def test_one_response_has_no_covariance():
    """One advantage for all tokens: covariance is 0 everywhere. Clip-Cov does nothing, KL-Cov still takes k tokens."""
    batch = make_batch(4, responses=1, tokens=100)
    assert check_clip_cov(batch, clip(clip_cov_lb=0.01))[0] == set()
    chosen = check_kl_cov(batch, kl())
    assert len(chosen) == int(0.05 * int(batch.mask.sum()))


WIDE = {"clip_ratio_low": 1.0, "clip_ratio_high": 1e6}  # binds on no token, so that each may be drawn


@pytest.mark.parametrize(
    "config", [kl(chosen_by="random"), clip(chosen_by="random", **WIDE)], ids=["kl_cov", "clip_cov"]
)
def test_the_control_draws_as_many_from_all_tokens_whatever_their_covariance(config):
    """Every token equally often: chi-square of 400 draws."""
    batch, other = make_batch(7), make_batch(7)
    other.advantages = -3 * batch.advantages.roll(30)
    candidates = set(batch.mask.nonzero().flatten().tolist())
    count = paper.selected_count(0.05, batch.mask.tolist())
    drawn = torch.zeros(len(batch.mask))
    for step in range(400):
        value, gradient, chosen = ours(batch, config, step=step)
        assert len(chosen) == count and chosen <= candidates and chosen == ours(other, config, step=step)[2]
        drawn[list(chosen)] += 1
    expected = 400 * count / len(candidates)
    chi_square = ((drawn[batch.mask] - expected) ** 2 / expected).sum().item()
    degrees = len(candidates) - 1
    assert abs(chi_square - degrees) < 5 * (2 * degrees) ** 0.5
    leaves, old, advantages, mask = batch.literal()
    if config.name == "kl_cov":
        literal = paper.kl_cov_loss(leaves, old, advantages, mask, chosen, coef=config.kl_cov_coef)
    else:
        literal = paper.clip_cov_loss(leaves, old, advantages, mask, chosen, low=1.0, high=1e6)
    assert_same(value, gradient, literal, leaves)


def test_the_control_of_clip_cov_leaves_out_what_the_clip_stops():
    batch, config = make_batch(8), clip(chosen_by="random", clip_cov_ratio=1.0, clip_ratio_low=0.1, clip_ratio_high=0.1)
    _, _, chosen = ours(batch, config)
    leaves, old, advantages, mask = batch.literal()
    cov = paper.covariance(leaves, advantages, mask)
    everywhere = {"lower": -1e9, "upper": 1e9}
    assert chosen == paper.clip_cov_candidates(cov, leaves, old, advantages, mask, **everywhere, low=0.1, high=0.1)
    assert 0 < len(chosen) < sum(mask)


def test_ties_are_broken_by_the_token_alone():
    """Every covariance occurs 60 times; the choice is the same tokens when they come in another order."""
    batch = make_batch(5, masked=0.0)
    batch.logprobs = torch.where(torch.arange(240) % 2 == 0, -1.0, -3.0)
    batch.advantages = torch.where(torch.arange(240) // 120 == 0, 1.0, -1.0)
    chosen = check_kl_cov(batch, kl())
    assert len(chosen) == 12
    order = torch.randperm(240, generator=torch.Generator().manual_seed(0))
    shuffled = Batch(*(getattr(batch, f)[order] for f in ("logprobs", "old", "advantages", "mask", "uids")))
    assert {int(batch.uids[i]) for i in chosen} == {int(shuffled.uids[i]) for i in check_kl_cov(shuffled, kl())}


def test_first_update_after_a_rollout():
    """Ratio exactly 1: KL-Cov is the unclipped policy gradient, bit for bit; Clip-Cov still takes gradients away."""
    batch = make_batch(6)
    assert len(check_kl_cov(batch, kl(), first_update=True)) > 1
    with_penalty = ours(batch, kl(kl_cov_coef=100.0), first_update=True)
    without = ours(batch, kl(kl_cov_ratio=0.0), first_update=True)
    assert with_penalty[0] == without[0] and torch.equal(with_penalty[1], without[1])
    chosen, _ = check_clip_cov(batch, clip(), first_update=True)
    assert len(chosen) > 1


def test_rounding_between_two_forward_passes_has_no_penalty_gradient():
    """The stated deviation: sign(d) of a difference below 1e-6 is noise, at 1e-5 it is not."""
    advantages, mask = torch.zeros(4), torch.ones(4, dtype=torch.bool)
    leaf = torch.tensor([-1.0, -1.0, -1.0, -1.0], dtype=torch.float64, requires_grad=True)
    old = leaf.detach() + torch.tensor([9e-7, -9e-7, 1e-5, -1e-5], dtype=torch.float64)
    loss, metrics = policy_loss(leaf, old, advantages.double(), mask, mask, kl(kl_cov_coef=2.0))
    loss.sum().backward()
    assert leaf.grad.tolist() == [0.0, 0.0, -2.0, 2.0]
    assert float(metrics["kl_penalty_sum"]) == pytest.approx(2 * (2 * 9e-7 + 2 * 1e-5), rel=1e-6)


def test_the_draw_of_clip_cov_changes_with_the_step_and_is_repeatable():
    batch = make_batch(7)
    draws = [frozenset(ours(batch, clip(), step=step)[2]) for step in (0, 0, 1, 2)]
    assert draws[0] == draws[1] and len(set(draws)) == 3
