"""What a deterministic run depends on beside its settings: where a floating-point sum is cut into parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pyrl.config import ConfigError, RunConfig
from pyrl.learner.parallel import Parallel
from pyrl.rollout.vllm_adapter import server_threads
from pyrl.stages.exchange import gather_from_every_rank

_FACTS = {
    "ranks": ("ranks", "start as many processes as then"),
    "parallel.threads": ("CPU threads a rank", "set parallel.threads to what it was then"),
    "rollout.threads": ("CPU threads a vLLM server", "set rollout.threads to what it was then"),
}
"""Name -> (what is counted, what to do about another count)."""


def check_deterministic(config: RunConfig, parallel: Parallel) -> None:
    """Raises ConfigError where `deterministic` promises what this device does not give."""
    if config.deterministic and parallel.device.type != "cpu":
        raise ConfigError(
            f"deterministic: true on {parallel.device.type}: only on CPU is the order of every sum fixed. Set "
            "deterministic: false; or hide the GPUs (CUDA_VISIBLE_DEVICES=) to run on CPU"
        )


def part_counts(config: RunConfig, parallel: Parallel) -> dict[str, Any]:
    """Ranks, and the thread counts that occur on them and on their servers (None: servers that somebody else started).

    JSON-serialisable, and the same on every rank. Collective.
    """
    counts = (torch.get_num_threads(), server_threads(config.rollout.threads))
    learners, servers = zip(*gather_from_every_rank(counts, parallel), strict=True)
    return {
        "ranks": parallel.world_size,
        "parallel.threads": sorted(set(learners)),
        "rollout.threads": None if config.rollout.urls else sorted(set(servers)),
    }


def check_part_counts(config: RunConfig, checkpoint: Path, state: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ConfigError where a deterministic run would go on from `checkpoint`, whose trainer state is `state`, with
    other counts than it was written with."""
    if not config.deterministic:
        return
    saved = state["part_counts"]
    for name, (what, remedy) in _FACTS.items():
        if None not in (saved[name], now[name]) and saved[name] != now[name]:
            raise ConfigError(
                f"deterministic: {checkpoint} was written with {_text(saved[name])} {what}, this run has "
                f"{_text(now[name])}: its sums would be rounded otherwise. To go on, {remedy}; or start anew in "
                "another run folder"
            )


def _text(counts: int | list[int]) -> str:
    return " or ".join(map(str, counts)) if isinstance(counts, list) else str(counts)
