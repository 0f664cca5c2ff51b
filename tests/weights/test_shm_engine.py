"""The engine inside vLLM, on a stand-in for its model; tests/integration runs the real one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyrl.weights import shm_engine_impl
from pyrl.weights.shm_engine_impl import ShmWeightTransferEngine


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2))


class Head(Embedding):
    """As in vLLM, a kind of embedding, with a method that packs its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.quant_method, self.packed = self, 0

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        layer.packed += 1


@pytest.mark.parametrize("tied", [True, False])
def test_only_a_head_that_shares_the_embeddings_weight_is_packed_again(
    monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    monkeypatch.setattr(shm_engine_impl, "VocabParallelEmbedding", Embedding)
    monkeypatch.setattr(shm_engine_impl, "ParallelLMHead", Head)
    engine = object.__new__(ShmWeightTransferEngine)
    engine.model = nn.ModuleDict({"embed_tokens": Embedding(), "lm_head": Head()})
    if tied:
        engine.model["lm_head"].weight = engine.model["embed_tokens"].weight
    engine._repack_tied_head()
    assert engine.model["lm_head"].packed == int(tied)
