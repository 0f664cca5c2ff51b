"""One module per op; each makes the op's cases for a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.case import Case
from benchmarks.ops import linear_logprob_entropy, logprob_entropy, policy_loss, selection

ALL: dict[str, Callable[[torch.device, float], Iterator[Case]]] = {
    "logprob_entropy": logprob_entropy.cases,
    "linear_logprob_entropy": linear_logprob_entropy.cases,
    "selection": selection.cases,
    "policy_loss": policy_loss.cases,
}
"""Name -> cases(device, scale), made one after the other, since two would not fit beside each other on a GPU."""
