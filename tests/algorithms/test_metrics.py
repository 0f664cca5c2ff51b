"""Rollout statistics by hand, token means across micro-batches, and what is refused."""

import math

import pytest
import torch

from pyrl.algorithms.aggregate import global_token_count, token_mean
from pyrl.algorithms.metrics import add_up, global_sums, token_statistics
from pyrl.algorithms.selection import covariance_statistics
from pyrl.data.packing import pack
from pyrl.telemetry.names import COVARIANCE_TOP_SHARES
from pyrl.types import Sequence, TokenScores


def scored(batch, entropies, gaps):
    """Scores with the given values at the response tokens, in order; garbage-free zeros elsewhere."""
    mask = batch.response_mask
    entropy, logprobs = torch.zeros(len(mask)), torch.zeros(len(mask))
    entropy[mask] = torch.tensor(entropies)
    if batch.rollout_logprobs is not None:
        logprobs[mask] = batch.rollout_logprobs[mask] + torch.tensor(gaps)
    return TokenScores(logprobs, entropy)


def test_entropy_of_tokens_and_of_responses():
    """Responses of 1 and 3 tokens: tokens (4 + 1 + 1 + 4) / 4 = 2.5, responses (4 + (1 + 1 + 4) / 3) / 2 = 3."""
    batches = [pack([Sequence(0, (1, 1), (5,), 0, (-1.0,)), Sequence(1, (1,), (5, 6, 7), 0, (-2.0,) * 3)]), pack([])]
    scores = [scored(batches[0], [4.0, 1.0, 1.0, 4.0], [0.5, -0.25, 0.0, 0.125]), scored(batches[1], [], [])]
    found = token_statistics(batches, scores, group=None)
    assert found.response_tokens == 4
    assert (found.entropy, found.entropy_response_mean) == (2.5, 3.0)
    assert (found.logprob_gap_mean, found.logprob_gap_p99, found.logprob_gap_max) == (0.875 / 4, 0.5, 0.5)


def test_p99_is_the_value_that_99_percent_do_not_exceed():
    gaps = [i / 1024 for i in range(1, 201)]
    batch = pack([Sequence(0, (1,), (5,) * 200, 0, (0.0,) * 200)])
    found = token_statistics([batch], [scored(batch, [0.0] * 200, gaps)], group=None)
    assert (found.logprob_gap_p99, found.logprob_gap_max) == (198 / 1024, 200 / 1024)


def test_without_rollout_logprobs_the_gap_is_undefined():
    batch = pack([Sequence(0, (1,), (5, 6))])
    found = token_statistics([batch], [scored(batch, [1.0, 2.0], [])], group=None)
    assert found.entropy == 1.5
    assert (found.logprob_gap_mean, found.logprob_gap_p99, found.logprob_gap_max) == (None, None, None)


def test_no_token_is_undefined_and_not_zero():
    found = token_statistics([pack([])], [scored(pack([]), [], [])], group=None).metrics()
    assert found.pop("response_tokens") == 0 and set(found.values()) == {None}


@pytest.mark.parametrize(("entropy", "gap", "name"), [(math.nan, 0.0, "entropy"), (1.0, math.inf, "gap")])
def test_non_finite_numbers_stop_the_run(entropy, gap, name):
    batch = pack([Sequence(0, (1,), (5,), 0, (-1.0,))])
    with pytest.raises(ValueError, match=f"{name} of response tokens: not finite"):
        token_statistics([batch], [scored(batch, [entropy], [gap])], group=None)


def test_token_mean_has_one_denominator():
    """Micro-batches of 3 and 1 valid tokens: the mean over 4 tokens, not the mean of two means."""
    losses = [torch.tensor([1.0, 2.0, 3.0, 99.0], requires_grad=True), torch.tensor([10.0], requires_grad=True)]
    masks = [torch.tensor([True, True, True, False]), torch.tensor([True])]
    count = global_token_count(masks, None)
    total = sum(token_mean(loss, mask, count) for loss, mask in zip(losses, masks, strict=True))
    total.backward()
    assert count == 4 and total.item() == 4.0
    assert losses[0].grad.tolist() == [0.25, 0.25, 0.25, 0.0] and losses[1].grad.tolist() == [0.25]


def test_covariance_tail_equals_sorting_with_ties():
    g = torch.Generator().manual_seed(1)
    cov = (torch.randn(7000, generator=g) * 4).round() / 4  # many ties
    mask = torch.rand(7000, generator=g) > 0.2
    found = covariance_statistics(cov, mask, group=None)
    ordered = cov[mask].double().sort(descending=True).values
    assert found.mean == pytest.approx(ordered.mean().item(), rel=1e-12)
    for share in COVARIANCE_TOP_SHARES:
        k = max(1, int(share * len(ordered)))
        assert found.top[share] == pytest.approx(ordered[:k].mean().item(), rel=1e-12)


def test_covariance_of_nothing_is_undefined():
    found = covariance_statistics(torch.zeros(3), torch.zeros(3, dtype=torch.bool), group=None)
    assert found.mean is None and set(found.metrics().values()) == {None}
    assert len(found.metrics()) == 1 + len(COVARIANCE_TOP_SHARES)


def test_covariance_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite for 1 of 2 valid tokens"):
        covariance_statistics(torch.tensor([1.0, math.nan, math.nan]), torch.tensor([True, True, False]), group=None)


def test_sums_add_up_by_name():
    parts = [{"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, {"b": torch.tensor(3.0), "a": torch.tensor(4.0)}]
    assert add_up(parts) == {"a": 5.0, "b": 5.0}
    assert global_sums(add_up(parts), None) == {"a": 5.0, "b": 5.0}
    with pytest.raises(ValueError, match="different metrics"):
        add_up([*parts, {"a": torch.tensor(1.0)}])
