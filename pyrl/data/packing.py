"""Sequences laid end to end, and which rank and micro-batch each of them goes to.

    split_mini_batches (groups -> optimizer updates) -> plan_micro_batches (sequences -> ranks) -> pack (-> tensors)

None of it changes what is computed: mini-batches do not depend on the layout, and the rest only moves tokens around.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from collections.abc import Sequence as Items
from itertools import chain, pairwise
from typing import TypeVar

import numpy as np
import torch

from pyrl.types import UID_POSITION_BITS, PackedBatch, Sequence

T = TypeVar("T")

MAX_SAMPLE_INDEX = 2**39 - 1
PADDING_TOKEN = 0
"""Any id inside the vocabulary will do: padding is a sequence of its own and carries no label."""
IGNORED_LABEL = -100


def split_mini_batches(groups: Items[T], updates: int) -> list[list[T]]:
    """Cut `groups` into `updates` contiguous, non-empty mini-batches whose sizes differ by at most one.

    The cut depends on the global order of the groups alone. Raises ValueError when there are fewer groups than updates.
    """
    if not 1 <= updates <= len(groups):
        raise ValueError(f"updates: wanted 1 to {len(groups)} (one for each group at most), got {updates}")
    cuts = [len(groups) * i // updates for i in range(updates + 1)]
    return [list(groups[start:end]) for start, end in pairwise(cuts)]


def plan_micro_batches(lengths: Items[int], *, dp: int, max_tokens: int) -> list[list[list[int]]]:
    """Spread sequences over data-parallel ranks and micro-batches: `plan[rank][micro]` lists indices, ascending.

    - Every rank gets the same number of micro-batches, at least one.
    - A micro-batch holds at most `max_tokens` tokens, or one sequence that is longer than that.
    - The loads of two ranks differ by at most the longest sequence.
    - A micro-batch is empty (`pack([])` makes it one of padding) only when there are fewer sequences than
      micro-batches; fewer than `dp` are, and no rank has two of them.

    Deterministic. Raises ValueError for a length, `dp` or `max_tokens` below 1.
    """
    if dp < 1 or max_tokens < 1:
        raise ValueError(f"wanted dp >= 1 and max_tokens >= 1, got dp {dp} and max_tokens {max_tokens}")
    if any(length < 1 for length in lengths):
        raise ValueError(f"lengths: wanted every length >= 1, got {min(lengths)}")
    budgets = -(-sum(min(length, max_tokens) for length in lengths) // max_tokens)
    bins = _round_up(max(1, budgets), dp)
    while True:
        contents = _fill(lengths, bins, max_tokens)
        if len(contents) == bins:
            break
        bins = _round_up(len(contents), dp)  # more were needed: level again over all of them
    contents.sort(key=lambda bin_: (-sum(lengths[i] for i in bin_), bin_))
    plan: list[list[list[int]]] = [[] for _ in range(dp)]
    for start in range(0, bins, dp):  # heaviest first and back and forth, so that no rank always gets the heavier one
        row = contents[start : start + dp]
        for rank, bin_ in enumerate(row if (start // dp) % 2 == 0 else reversed(row)):
            plan[rank].append(bin_)
    return plan


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _fill(lengths: Items[int], bins: int, max_tokens: int) -> list[list[int]]:
    """Longest sequence first, each into the lightest bin; into a new bin where even that one has no room."""
    heap = [(0, b) for b in range(bins)]
    contents: list[list[int]] = [[] for _ in range(bins)]
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        load, lightest = heap[0]
        if load and load + lengths[i] > max_tokens:
            heapq.heappush(heap, (lengths[i], len(contents)))
            contents.append([i])
        else:
            heapq.heapreplace(heap, (load + lengths[i], lightest))
            contents[lightest].append(i)
    return [sorted(bin_) for bin_ in contents]


def pack(sequences: Items[Sequence], *, pad_multiple: int = 1) -> PackedBatch:
    """Lay sequences end to end and pad to a multiple of `pad_multiple` tokens; alignment as `PackedBatch` says.

    The last token of a sequence predicts nothing and nothing attends to it, so it is a label only.

    A token whose rollout log-prob is not finite is masked: nobody knows from which policy it was drawn, so it is in
    neither the loss nor its denominator. No sequence at all gives a valid batch of padding without a response token.
    `rollout_logprobs` is None when the sequences carry none. Raises ValueError: empty prompt or response, an index or
    response too long for a token uid, a sample twice in the batch, log-probs that do not match the response, or only
    some sequences with log-probs.
    """
    if pad_multiple < 1:
        raise ValueError(f"pad_multiple: wanted >= 1, got {pad_multiple}")
    _check(sequences)
    prompt_lengths = np.array([len(s.prompt_ids) for s in sequences], dtype=np.int64)
    response_lengths = np.array([len(s.response_ids) for s in sequences], dtype=np.int64)
    lengths = prompt_lengths + response_lengths - 1
    used = int(lengths.sum())
    total = max(_round_up(used, pad_multiple), pad_multiple)
    padding = total - used

    segments = np.append(lengths, padding) if padding else lengths
    cu_seqlens = np.concatenate([[0], np.cumsum(segments)])
    position_ids = np.arange(total) - np.repeat(cu_seqlens[:-1], segments)

    tokens = np.full(total, PADDING_TOKEN, dtype=np.int64)
    tokens[:used] = _flat((ids for s in sequences for ids in (s.prompt_ids, s.response_ids[:-1])), used, np.int64)

    # the first response label sits on the last prompt token
    response_position = position_ids[:used] - np.repeat(prompt_lengths - 1, lengths)
    mask = np.zeros(total, dtype=bool)
    mask[:used] = response_position >= 0

    labels = np.full(total, IGNORED_LABEL, dtype=np.int64)
    labels[mask] = _flat((s.response_ids for s in sequences), int(mask.sum()), np.int64)
    sample_indices = [s.sample_index for s in sequences]
    token_uids = np.full(total, -1, dtype=np.int64)
    token_uids[:used] = (np.repeat(np.array(sample_indices, dtype=np.int64), lengths) << UID_POSITION_BITS) + (
        response_position
    )
    token_uids[~mask] = -1
    advantages = np.zeros(total, dtype=np.float32)
    advantages[mask] = np.repeat(np.array([s.advantage for s in sequences], dtype=np.float32), response_lengths)

    rollout_logprobs = None
    if all(s.rollout_logprobs is not None for s in sequences):
        rollout_logprobs = np.zeros(total, dtype=np.float32)
        rollout_logprobs[mask] = _flat((s.rollout_logprobs for s in sequences), int(mask.sum()), np.float32)
        unknown = ~np.isfinite(rollout_logprobs)
        mask &= ~unknown
        labels[unknown], token_uids[unknown] = IGNORED_LABEL, -1
        advantages[unknown], rollout_logprobs[unknown] = 0.0, 0.0

    return PackedBatch(
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(position_ids),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(segments.max()),
        response_mask=torch.from_numpy(mask),
        advantages=torch.from_numpy(advantages),
        token_uids=torch.from_numpy(token_uids),
        rollout_logprobs=None if rollout_logprobs is None else torch.from_numpy(rollout_logprobs),
        sample_indices=tuple(sample_indices),
    )


def _flat(parts: Iterable[Iterable[float]], count: int, dtype: type) -> np.ndarray:
    return np.fromiter(chain.from_iterable(parts), dtype=dtype, count=count)


def _check(sequences: Items[Sequence]) -> None:
    with_logprobs = sum(s.rollout_logprobs is not None for s in sequences)
    if with_logprobs not in (0, len(sequences)):
        raise ValueError(f"rollout_logprobs: {with_logprobs} of {len(sequences)} sequences have them; all or none must")
    seen: set[int] = set()
    for s in sequences:
        if not s.prompt_ids or not s.response_ids:
            raise ValueError(
                f"sample {s.sample_index}: wanted at least one prompt and one response token, got {len(s.prompt_ids)} "
                f"and {len(s.response_ids)}"
            )
        if not 0 <= s.sample_index <= MAX_SAMPLE_INDEX or len(s.response_ids) > 1 << UID_POSITION_BITS:
            raise ValueError(
                f"sample_index {s.sample_index} with {len(s.response_ids)} response tokens does not fit a token uid: "
                f"wanted 0 to {MAX_SAMPLE_INDEX} and at most {1 << UID_POSITION_BITS} tokens"
            )
        if s.sample_index in seen:
            raise ValueError(f"sample_index {s.sample_index} twice in one batch: token uids would not be unique")
        if s.rollout_logprobs is not None and len(s.rollout_logprobs) != len(s.response_ids):
            raise ValueError(
                f"sample {s.sample_index}: {len(s.rollout_logprobs)} rollout_logprobs for {len(s.response_ids)} "
                "response tokens"
            )
        seen.add(s.sample_index)
