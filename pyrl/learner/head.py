"""The LM head: from the last stage's output to log-probs and entropies, chosen by `model.lm_head`.

`unfused` is Megatron's output layer and `logprob_entropy` on its logits [T, V/tp]. `fused` ends the model before the
output layer and computes both from hidden states and weight, with `linear_logprob_entropy`: logits exist a chunk at a
time, and the weight's gradient is added to Megatron's fp32 `main_grad` directly. Megatron-Core 0.16 has no hook there,
hence the subclass. Parameters, their names and their place in checkpoints are the same for both.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

from pyrl.config import ModelConfig
from pyrl.learner.parallel import Parallel
from pyrl.ops import linear_logprob_entropy, logprob_entropy


class HiddenStateModel(GPTModel):
    """GPTModel whose last stage returns its final hidden states [T, h] instead of logits."""

    def _postprocess(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        """`hidden_states` [T or, under sequence parallelism, T/tp, 1, h], after the final norm."""
        if not self.post_process:
            return hidden_states
        if self.config.sequence_parallel:
            # Backward it sums the ranks' parts of the gradient, and gives each rank that of its own tokens.
            hidden_states = gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=True, group=self.pg_collection.tp
            )
        return hidden_states.flatten(0, 1)

    @property
    def head_weight(self) -> torch.nn.Parameter:
        """[Vp/tp, h]: the output layer's own, or the embedding's where they are tied and on one stage."""
        weight = self.output_layer.weight
        return self.shared_embedding_or_output_weight() if weight is None else weight


def model_class(config: ModelConfig) -> type[GPTModel]:
    """What `score_tokens` takes the output of."""
    return HiddenStateModel if config.lm_head == "fused" else GPTModel


def score_tokens(
    model: GPTModel,
    output: torch.Tensor,
    labels: torch.Tensor,
    *,
    vocab_size: int,
    logits_dtype: str,
    parallel: Parallel,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probs, entropies) of `labels` int64 [T], fp32 [T] each, from what the last stage of `model` returned."""
    group = parallel.tp_group if parallel.tp_size > 1 else None
    if not isinstance(model, HiddenStateModel):
        # Nothing else reads the logits: the output layer keeps its input and weight.
        return logprob_entropy(
            output.flatten(0, 1), labels, vocab_size=vocab_size, group=group, inplace_backward=True
        )
    return linear_logprob_entropy(
        output,
        model.head_weight,
        labels,
        vocab_size=vocab_size,
        group=group,
        logits_dtype=logits_dtype,
        sum_hidden_grad=not model.config.sequence_parallel,
    )
