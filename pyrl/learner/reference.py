"""A frozen copy of the policy, scored by the same model: only the weights change places.

No second model is built, so the reference goes through the very layers, attention and vocabulary op of the policy,
under any layout, and costs its weights alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class FrozenWeights:
    """The weights that a model has now, this rank's shard, in the model's precision and on its device."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @property
    def bytes(self) -> int:
        """Memory that the copy takes on this rank."""
        return sum(weight.numel() * weight.element_size() for weight in self._weights.values())

    @contextmanager
    def in_place_of(self, model: torch.nn.Module) -> Iterator[None]:
        """Let `model`, the one that was copied, have these weights; its own come back untouched, without a copy.

        Inside, nothing may write a parameter: forward passes without gradient alone.
        """
        parameters = dict(model.named_parameters())
        current = {name: p.data for name, p in parameters.items()}
        try:
            for name, p in parameters.items():
                p.data = self._weights[name]
            yield
        finally:
            for name, p in parameters.items():
                p.data = current[name]
