"""Loss aggregation against its definition in float64, value and gradient, however the sequences are packed."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from pyrl.algorithms.aggregate import AGGREGATIONS, aggregate, mini_batch_size
from pyrl.config import AlgorithmConfig, ConfigError, parse_config
from pyrl.data.packing import pack
from pyrl.types import PackedBatch, Sequence

LENGTHS = (1, 5, 2, 7)
CONSTANT = 16
PACKINGS = {"one": [[0, 1, 2, 3]], "two and padding": [[3, 0], [], [1, 2]], "each alone": [[2], [0], [3], [1]]}


def losses() -> list[torch.Tensor]:
    """Of each response, float64 [length], with gradient."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, generator=generator, dtype=torch.float64).requires_grad_() for n in LENGTHS]


def definition(mode: str, responses: list[torch.Tensor]) -> torch.Tensor:
    return {
        "token-mean": lambda: torch.cat(responses).mean(),
        "seq-mean-token-mean": lambda: torch.stack([r.mean() for r in responses]).mean(),
        "seq-mean-token-sum-norm": lambda: torch.stack([r.sum() for r in responses]).mean() / CONSTANT,
    }[mode]()


def packed(indices: list[int]) -> PackedBatch:
    return pack([Sequence(i, (1,) * (1 + i % 3), (2,) * LENGTHS[i]) for i in indices], pad_multiple=4)


def laid_out(batch: PackedBatch, responses: list[torch.Tensor]) -> torch.Tensor:
    """[T]: the responses' losses where their labels are, NaN elsewhere."""
    loss = torch.full((len(batch.tokens),), torch.nan, dtype=torch.float64)
    places = torch.where(batch.response_mask)[0]
    values = [responses[i] for i in batch.sample_indices]
    return loss.index_put((places,), torch.cat(values)) if values else loss


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_equals_its_definition_for_any_packing(mode: str, packing: str) -> None:
    batches = [packed(indices) for indices in PACKINGS[packing]]
    size = mini_batch_size(batches, None)
    assert (size.tokens, size.sequences) == (sum(LENGTHS), len(LENGTHS))
    responses, literal = losses(), losses()
    total = sum(aggregate(laid_out(b, responses), b, size, mode=mode, loss_scale_factor=CONSTANT) for b in batches)
    expected = definition(mode, literal)
    assert total.item() == pytest.approx(expected.item(), rel=1e-14)
    total.backward()
    expected.backward()
    for got, wanted in zip(responses, literal, strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-14, atol=0)


def test_every_configured_mode_is_registered_and_the_factor_is_of_one_alone() -> None:
    assert set(get_args(AlgorithmConfig.model_fields["loss_agg_mode"].annotation)) == AGGREGATIONS.keys()
    tree = {"model": {"path": "m"}, "data": {"path": "d"}, "algorithm": {"loss_scale_factor": 8}}
    with pytest.raises(ConfigError, match=r"loss_scale_factor 8 is not used by loss_agg_mode 'token-mean': set"):
        parse_config(tree)


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_a_mini_batch_without_a_response_is_refused(mode: str) -> None:
    empty = pack([])
    with pytest.raises(ValueError, match="wanted at least 1"):
        aggregate(torch.zeros(1), empty, mini_batch_size([empty], None), mode=mode, loss_scale_factor=CONSTANT)
