"""Supervised fine-tuning in the same learner and op as reinforcement learning: loss = -log-prob of demonstrations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from pyrl.algorithms.aggregate import global_token_count, token_mean
from pyrl.config import ConfigError
from pyrl.data.cursor import PromptCursor
from pyrl.data.packing import pack, plan_micro_batches
from pyrl.data.templates import encode
from pyrl.learner.learner import Learner
from pyrl.learner.parallel import Parallel
from pyrl.types import PackedBatch, Sequence

LOSS_WINDOW = 20
"""Updates whose mean loss is compared with a target."""


def load_demonstrations(path: Path, tokenizer: PreTrainedTokenizerBase, *, template: str) -> list[Sequence]:
    """Demonstrations from JSONL with `prompt` and `response` texts; the stop token is added to each response.

    A prompt is tokenized as reinforcement learning does it, under the same `template` (`data.template`).

    Raises ConfigError naming the row for a missing file, a missing or empty field or a line that is not JSON.
    """
    if not path.is_file():
        raise ConfigError(f"demonstrations {path} do not exist")
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}, line {number}: not JSON ({error})") from error
        for field in ("prompt", "response"):
            if not isinstance(row, dict) or not isinstance(row.get(field), str) or not row[field]:
                raise ConfigError(f"{path}, line {number}: {field!r} must be a text that is not empty")
        rows.append(row)
    prompts = encode([[{"role": "user", "content": r["prompt"]}] for r in rows], template, tokenizer)
    responses = tokenizer([r["response"] for r in rows], add_special_tokens=False)["input_ids"]
    return [
        Sequence(i, prompt, (*response, tokenizer.eos_token_id))
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]


def fine_tune(
    learner: Learner,
    parallel: Parallel,
    demonstrations: list[Sequence],
    *,
    steps: int,
    batch_size: int,
    max_tokens: int,
    seed: int,
    target_loss: float | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """`steps` updates on batches drawn in a seeded order; returns the last loss, nats a token. Collective.

    It ends earlier when the mean loss of the last `LOSS_WINDOW` updates is `target_loss` or less. The learning rate is
    the learner's. `on_step(step, loss)` is called after each update.
    """
    cursor = PromptCursor(len(demonstrations), seed=seed, shuffle=True)
    losses: list[float] = []
    for step in range(1, steps + 1):
        drawn = [demonstrations[i] for i in cursor.next(batch_size)]
        batch = [replace(sequence, sample_index=i) for i, sequence in enumerate(drawn)]
        plan = plan_micro_batches([len(s) for s in batch], dp=parallel.dp_size, max_tokens=max_tokens)
        packed = [pack([batch[i] for i in m], pad_multiple=learner.pad_multiple) for m in plan[parallel.dp_rank]]
        packed = [batch.to(parallel.device) for batch in packed]
        tokens = global_token_count([p.response_mask for p in packed], parallel.dp_group)

        def negative_logprob(
            batch: PackedBatch, logprobs: torch.Tensor, entropy: torch.Tensor, tokens: int = tokens
        ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            part = token_mean(-logprobs, batch.response_mask, tokens)
            return part, {"loss": part.detach()}

        result = learner.update(packed, negative_logprob)
        total = torch.stack([o["loss"].double() for o in result.outputs]).sum()
        torch.distributed.all_reduce(total, group=parallel.dp_group)
        losses.append(float(total))
        on_step(step, losses[-1])
        recent = losses[-LOSS_WINDOW:]
        if target_loss is not None and len(recent) == LOSS_WINDOW and sum(recent) / LOSS_WINDOW <= target_loss:
            break
    return losses[-1]
