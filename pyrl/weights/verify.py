"""Does vLLM hold what was sent? Checksums where the backend keeps weights as sent, log-probs of a probe batch anywhere.

vLLM's CPU backend packs linear weights and drops the originals, so there only log-probs can tell.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch

from pyrl.rollout.client import RolloutClient
from pyrl.rollout.control import EngineControl

LOGPROB_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}
"""Largest |difference| of a token's log-prob between engine and learner, which run other kernels on the same weights;
by `model.dtype`."""

VOCABULARY_MULTIPLE = 64
"""vLLM pads embeddings and output layers to a multiple of this many rows."""

_FUSED = {
    "q_proj": ("qkv_proj", 0), "k_proj": ("qkv_proj", 1), "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1),
}  # fmt: skip
_FUSED_COUNT = Counter(fused for fused, _ in _FUSED.values())
_PART = re.compile(rf"\.({'|'.join(_FUSED)})\.(weight|bias)$")


class WeightMismatch(RuntimeError):
    """An engine does not hold the weights it was sent."""


def probe_logprobs(client: RolloutClient, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """log p(token t | tokens before it), t = 1 ... len - 1, of each probe sequence, as the engines compute it."""
    return client.score(sequences)


def check_logprobs(
    engine: Sequence[Sequence[float]], learner: Sequence[Sequence[float]], *, tolerance: float, version: int
) -> float:
    """Largest |difference| over all probe tokens; WeightMismatch where it exceeds `tolerance` or is not finite."""
    pairs = [
        (mine, its, row, position)
        for row, (ours, theirs) in enumerate(zip(learner, engine, strict=True))
        for position, (mine, its) in enumerate(zip(ours, theirs, strict=True), start=1)
    ]
    if not pairs:
        raise ValueError("the probe batch holds no token to compare: give sequences of at least 2 tokens")

    def gap(pair: tuple[float, float, int, int]) -> float:
        difference = abs(pair[0] - pair[1])
        return math.inf if math.isnan(difference) else difference

    mine, its, row, position = largest = max(pairs, key=gap)
    worst = gap(largest)
    if worst > tolerance:
        raise WeightMismatch(
            f"after the sync of version {version}, learner and engine disagree on log-probs by up to {worst:.4g} "
            f"(tolerance {tolerance:g}): probe {row}, token {position}: learner {mine:.6f}, engine {its:.6f}. "
            "The engine does not hold the learner's weights, or computes another model"
        )
    return worst


def expected_checksums(
    named_tensors: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype, *, wanted: bool = True
) -> dict[str, str]:
    """SHA-256 of each parameter as a vLLM server of one worker names and keeps it: q, k, v and gate, up are fused, and
    vocabularies padded with zero rows. For Llama and Qwen2 families.

    Not `wanted`: read the tensors, which is a collective, and return nothing.
    """
    parts: dict[str, dict[int, torch.Tensor]] = {}
    digests: dict[str, str] = {}
    for name, tensor in named_tensors:
        if not wanted:
            continue
        match = _PART.search(name)
        fused, order = _FUSED[match.group(1)] if match else ("", 0)
        key = f"{name[: match.start()]}.{fused}.{match.group(2)}" if match else name
        held = parts.setdefault(key, {})
        held[order] = tensor.detach().to("cpu", dtype, copy=True)
        if len(held) == _FUSED_COUNT.get(fused, 1):  # at once: the whole model need not be held
            digests[key] = _digest(_padded(key, torch.cat([held[i] for i in sorted(held)])))
            del parts[key]
    return digests


def _padded(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """[rows, ...] as vLLM keeps it."""
    if not name.endswith(("embed_tokens.weight", "lm_head.weight")):
        return tensor
    missing = -tensor.shape[0] % VOCABULARY_MULTIPLE
    return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()


def check_checksums(control: EngineControl, expected: dict[str, str]) -> int:
    """Compare a server's weight checker with `expected_checksums`; returns how many parameters were compared.

    Raises WeightMismatch naming the first parameter that differs, ValueError for a server with tp > 1, whose shards
    this does not know.
    """
    held = control.checksums()
    prefixes = {key.rpartition(":")[0] for key in held}
    if len(prefixes) != 1:
        raise ValueError(f"{control.url} has {len(prefixes)} workers: checksums are compared for tp = 1 only")
    held = {key.rpartition(":")[2]: digest for key, digest in held.items()}
    missing = [name for name in expected if name not in held]
    if missing or not expected:
        raise WeightMismatch(f"{control.url} holds no parameter {missing[:3]} of {len(expected)} that were sent")
    wrong = [name for name in expected if held[name] != expected[name]]
    if wrong:
        raise WeightMismatch(f"{control.url}: {len(wrong)} of {len(expected)} parameters differ, first {wrong[0]!r}")
    return len(expected)
