"""Which tokens Clip-Cov or KL-Cov chose: a small random sample of each step's, the same whatever the layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pyrl.learner.parallel import Parallel
from pyrl.ops.counter import as_int64, derive_seed, mix_uids
from pyrl.stages.collect import Collected
from pyrl.stages.exchange import gather_to_rank_zero
from pyrl.types import UID_POSITION_BITS, PackedBatch, TokenScores

CONTEXT_TOKENS = 8
"""Tokens of the response that a row shows before the chosen one."""
_POSITION = (1 << UID_POSITION_BITS) - 1


@dataclass(frozen=True, slots=True)
class SelectedToken:
    """One chosen token, as the update saw it that it was chosen for."""

    key: int
    """Random bits of the token: the sample of a step holds the smallest."""
    uid: int
    update: int
    """Of the step, from 0."""
    token_id: int
    prompt: tuple[int, ...]
    before: tuple[int, ...]
    """The response's tokens before it, at most `CONTEXT_TOKENS`."""
    logprob: float
    advantage: float
    covariance: float


def draw(
    batches: list[PackedBatch],
    scores: list[TokenScores],
    selected: list[torch.Tensor],
    covariance: torch.Tensor,
    *,
    update: int,
    seed: int,
    count: int,
) -> list[SelectedToken]:
    """Of one update, this rank's up to `count` chosen tokens with the smallest keys, in their order.

    `selected`: bool [T] of each batch; `covariance`: fp32 [sum of T].
    """
    start, found = 0, []
    for batch, score, chosen in zip(batches, scores, selected, strict=True):
        places = (chosen & batch.response_mask).nonzero().flatten()
        keys, order = (mix_uids(batch.token_uids[places], seed) ^ as_int64(1 << 63)).sort()  # as unsigned numbers
        places = places[order[:count]]
        columns = (keys[:count], batch.token_uids[places], batch.labels[places], score.logprobs[places],
                   batch.advantages[places], covariance[start + places])  # fmt: skip
        rows = zip(places.tolist(), *(column.tolist() for column in columns), strict=True)
        for place, key, uid, token, logprob, advantage, cov in rows:
            prompt, before = _around(batch, place, uid)
            found.append(SelectedToken(key, uid, update, token, prompt, before, logprob, advantage, cov))
        start += len(batch.tokens)
    return sorted(found, key=lambda token: token.key)[:count]


def draw_seed(run_seed: int, step: int) -> int:
    """Of the sample of one step."""
    return derive_seed(run_seed, step=step, mini_batch=0, purpose="show_selected")


def gather_sample(own: list[SelectedToken], count: int, parallel: Parallel) -> list[SelectedToken]:
    """On rank 0 the step's `count` tokens of smallest key, in that order; [] elsewhere. `own`: this rank's of all
    updates. Collective."""
    parts = gather_to_rank_zero(own if parallel.is_leader else [], parallel) or []
    return sorted((token for part in parts for token in part), key=lambda token: token.key)[:count]


def selected_row(
    step: int, token: SelectedToken, collected: Collected, decode: Callable[[list[int]], str]
) -> dict[str, Any]:
    """One line of `samples.jsonl`: a chosen token, with `decode` turning token ids into text."""
    place, response = collected.kept_samples[token.uid >> UID_POSITION_BITS]
    facts, _ = collected.kept[place]
    return {
        "step": step,
        "kind": "selected_token",
        "update": token.update,
        "prompt_id": facts.prompt_id,
        "source": facts.source,
        "prompt": decode(list(token.prompt)),
        "response": response,
        "position": token.uid & _POSITION,
        "token_id": token.token_id,
        "text": decode([token.token_id]),
        "before": decode(list(token.before)),
        "probability": math.exp(token.logprob),
        "advantage": token.advantage,
        "covariance": token.covariance,
    }


def _around(batch: PackedBatch, place: int, uid: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The prompt of the token that `place` predicts, and what of the response comes before it."""
    position = uid & _POSITION
    response = place + 1 - position  # `place` holds the token before the predicted one
    start = place - int(batch.position_ids[place])
    tokens = batch.tokens[start : place + 1].tolist()
    return tuple(tokens[: response - start]), tuple(tokens[response - start :][-CONTEXT_TOKENS:])
