"""What crosses ranks between a rollout and its updates.

Small facts go to every rank as Python objects. Tokens and log-probs stay with the leader that generated them until
every rank has planned, from the facts, which replica trains on which sequence; then each travels once, in a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from pyrl.learner.parallel import Parallel
from pyrl.types import Completion, Prompt, Sequence

T = TypeVar("T")


def share_of(items: list[T], parallel: Parallel) -> list[T]:
    """The contiguous part of `items` that this rank's data-parallel replica generates and grades.

    Sizes differ by at most one, and the parts of all replicas in rank order are `items` again.
    """
    start = len(items) * parallel.dp_rank // parallel.dp_size
    end = len(items) * (parallel.dp_rank + 1) // parallel.dp_size
    return items[start:end]


def wait_for_leaders(
    parallel: Parallel, seconds: float, step: int, check: Callable[[], None] | None = None
) -> None:
    """Return when every leader has generated and graded; `seconds`: `rollout.timeout_seconds`. Collective.

    A rollout may take longer than a collective may. Raises RankWaitError, naming the ranks that are late, and what
    `check` raises (`RankBarrier.wait`).
    """
    if parallel.world_size > 1:
        what = f"the leaders to generate and grade the responses of step {step}"
        parallel.barrier.wait(what, seconds=seconds, setting="rollout.timeout_seconds", check=check)


def gather_from_leaders(items: list[T] | None, parallel: Parallel) -> list[T]:
    """Concatenate the leaders' lists in data-parallel order, on every rank. Non-leaders pass None. Collective."""
    if parallel.world_size == 1:
        return list(items or [])
    gathered = gather_from_every_rank((parallel.dp_rank, items) if parallel.is_leader else None, parallel)
    parts = sorted((part for part in gathered if part is not None), key=lambda part: part[0])
    return [item for _, part in parts for item in part]


def gather_from_every_rank(value: T, parallel: Parallel) -> list[T]:
    """The values of all ranks, in rank order, on every rank. Collective."""
    if parallel.world_size == 1:
        return [value]
    values: list[T | None] = [None] * parallel.world_size
    dist.all_gather_object(values, value, group=parallel.cpu_group)
    return values  # type: ignore[return-value]


def gather_to_rank_zero(value: T, parallel: Parallel) -> list[T] | None:
    """The values of all ranks, in rank order, on rank 0; None on the others. Collective."""
    if parallel.world_size == 1:
        return [value]
    values: list[T | None] | None = [None] * parallel.world_size if parallel.rank == 0 else None
    dist.gather_object(value, values, dst=0, group=parallel.cpu_group)
    return values  # type: ignore[return-value]


def broadcast_from_rank_zero(value: T | None, parallel: Parallel) -> T:
    """Rank 0's value on every rank. Collective."""
    if parallel.world_size == 1:
        return value  # type: ignore[return-value]
    box = [value]
    dist.broadcast_object_list(box, src=0, group=parallel.cpu_group)
    return box[0]  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class SequenceFacts:
    """What every rank knows of a sequence before its tokens travel."""

    sample_index: int
    prompt_tokens: int
    response_tokens: int
    advantage: float
    holder: int
    """Data-parallel rank whose leader has the tokens."""

    def __len__(self) -> int:
        return self.prompt_tokens + self.response_tokens

    @property
    def words(self) -> int:
        """int32 of its message: prompt ids, response ids, and the bits of one fp32 log-prob a response token."""
        return self.prompt_tokens + 2 * self.response_tokens


def redistribute(
    facts: list[SequenceFacts],
    receivers: Mapping[int, int],
    held: Mapping[int, tuple[Prompt, Completion]],
    parallel: Parallel,
) -> dict[int, Sequence]:
    """Bring each sequence to the replica that trains on it; returns this replica's, by sample index.

    `facts` and `receivers` (sample index -> data-parallel rank): the same on every rank. `held`: what this rank holds,
    by sample index; read on leaders only. Every rank of a replica gets the same sequences, with log-probs rounded to
    fp32. Collective: one all-to-all among the leaders, then one broadcast in each replica. Raises ValueError when a
    held sequence does not have the lengths of its facts.
    """
    here = parallel.dp_rank
    coming = sorted((f for f in facts if receivers[f.sample_index] == here), key=lambda f: f.holder)
    message = torch.empty(sum(f.words for f in coming), dtype=torch.int32, device=parallel.device)
    if parallel.is_leader:
        going = sorted((f for f in facts if f.holder == here), key=lambda f: receivers[f.sample_index])
        own = _encode(going, held).to(parallel.device)
        if parallel.dp_size == 1:
            message = own
        else:  # the leaders are the data-parallel group of tensor rank 0 and pipeline rank 0
            sizes_out = _words_by_rank(going, [receivers[f.sample_index] for f in going], parallel.dp_size)
            sizes_in = _words_by_rank(coming, [f.holder for f in coming], parallel.dp_size)
            dist.all_to_all_single(message, own, sizes_in, sizes_out, group=parallel.dp_group)
    if parallel.world_size > parallel.dp_size:
        dist.broadcast(message, group=parallel.model_parallel_group, group_src=0)
    return _decode(message.cpu().numpy(), coming)


def _words_by_rank(facts: list[SequenceFacts], ranks: list[int], dp_size: int) -> list[int]:
    words = [0] * dp_size
    for f, rank in zip(facts, ranks, strict=True):
        words[rank] += f.words
    return words


def _encode(facts: list[SequenceFacts], held: Mapping[int, tuple[Prompt, Completion]]) -> torch.Tensor:
    """int32 [sum of words]"""
    parts = [np.empty(0, dtype=np.int32)]
    for f in facts:
        prompt, completion = held[f.sample_index]
        ids = np.array(prompt.token_ids + completion.token_ids, dtype=np.int32)
        logprobs = np.array(completion.rollout_logprobs, dtype=np.float32)
        if (len(ids), len(logprobs)) != (f.prompt_tokens + f.response_tokens, f.response_tokens):
            raise ValueError(
                f"sample {f.sample_index}: {len(ids)} tokens and {len(logprobs)} rollout_logprobs do not fit a prompt "
                f"of {f.prompt_tokens} and a response of {f.response_tokens} tokens"
            )
        parts += [ids, logprobs.view(np.int32)]
    return torch.from_numpy(np.concatenate(parts))


def _decode(message: np.ndarray, facts: list[SequenceFacts]) -> dict[int, Sequence]:
    sequences, start = {}, 0
    for f in facts:
        response = start + f.prompt_tokens
        logprobs, end = response + f.response_tokens, start + f.words
        sequences[f.sample_index] = Sequence(
            f.sample_index,
            tuple(message[start:response].tolist()),
            tuple(message[response:logprobs].tolist()),
            f.advantage,
            tuple(message[logprobs:end].view(np.float32).tolist()),
        )
        start = end
    return sequences
