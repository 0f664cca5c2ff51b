"""The order in which prompts are asked."""

from __future__ import annotations

import torch

from pyrl.config import ConfigError
from pyrl.ops.counter import derive_seed, mix_uids

_CHANGED = {
    "num_prompts": "the number of prompts in data.path",
    "prompts_sha256": "the content or the order of the prompts in data.path, or the tokenizer in model.path",
    "seed": "seed",
    "shuffle": "data.shuffle",
}
"""Field of a cursor's state -> what has changed when it has."""


class PromptCursor:
    """Walks over the prompts epoch after epoch; where it stands is one number, `consumed`.

    The order of an epoch depends on (seed, epoch) alone: prompts sorted by the counter-based mix of (seed, epoch,
    index). It is the same for every layout and library version, and any position can be reached directly.
    """

    def __init__(self, num_prompts: int, *, seed: int, shuffle: bool, fingerprint: str = "") -> None:
        """Raises ValueError for `num_prompts` below 1. Without `shuffle` every epoch is in file order.

        `fingerprint`: of the prompts (`prompts.fingerprint`), for a cursor whose state is saved.
        """
        if num_prompts < 1:
            raise ValueError(f"num_prompts: wanted at least 1, got {num_prompts}")
        self._num_prompts = num_prompts
        self._seed = seed
        self._shuffle = shuffle
        self._fingerprint = fingerprint
        self._consumed = 0
        self._epoch: int | None = None
        self._order: list[int] = []

    @property
    def consumed(self) -> int:
        """Prompts handed out so far, over all epochs."""
        return self._consumed

    @property
    def epoch(self) -> int:
        """Epoch of the next prompt, from 0."""
        return self._consumed // self._num_prompts

    def next(self, count: int) -> list[int]:
        """The next `count` prompt indices; an epoch may end in the middle."""
        if count < 0:
            raise ValueError(f"count: wanted 0 or more, got {count}")
        indices: list[int] = []
        while len(indices) < count:
            start = self._consumed % self._num_prompts
            taken = self._order_of(self.epoch)[start : start + count - len(indices)]
            indices += taken
            self._consumed += len(taken)
        return indices

    def state_dict(self) -> dict[str, int | bool | str]:
        """What `load_state_dict` needs, JSON-serialisable."""
        return {
            "num_prompts": self._num_prompts,
            "prompts_sha256": self._fingerprint,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "consumed": self._consumed,
        }

    def load_state_dict(self, state: dict[str, int | bool | str]) -> None:
        """Go on where `state` was taken. Raises ConfigError when it belongs to other prompts, seed or order."""
        now = self.state_dict()
        for name, what in _CHANGED.items():
            if state.get(name) != now[name]:
                raise ConfigError(
                    f"{what} changed: {name} is {now[name]} now and was {state.get(name)} when the checkpoint was "
                    "written; restore what it was, or start anew in another run folder"
                )
        self._consumed = int(state["consumed"])

    def _order_of(self, epoch: int) -> list[int]:
        if self._epoch != epoch:
            indices = torch.arange(self._num_prompts)
            if self._shuffle:
                seed = derive_seed(self._seed, step=epoch, mini_batch=0, purpose="prompt_order")
                indices = mix_uids(indices, seed).argsort()  # a bijection: no two prompts tie
            self._epoch, self._order = epoch, indices.tolist()
        return self._order
