"""Tiny random Hugging Face models whose dimensions all differ, and sequences to run through them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pyrl.config import RunConfig
from pyrl.types import Sequence

VOCAB = 211
_DIMENSIONS = {
    "vocab_size": VOCAB,
    "hidden_size": 72,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "max_position_embeddings": 256,
}


def save_tiny_model(family: str, folder: Path, *, tied: bool = True, seed: int = 0, **changes: Any) -> torch.nn.Module:
    """Write a random `qwen2` or `llama` to `folder` and return it, in eval mode.

    Every parameter is random, norms and biases too: at their usual start (1 and 0) a misplaced one would not show.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config_type, model_type = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[family]
    config = config_type(**{**_DIMENSIONS, "tie_word_embeddings": tied, **changes})
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = model_type(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.1)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model.eval()


def random_sequences(count: int, *, seed: int = 0, vocab: int = VOCAB) -> list[Sequence]:
    """Sequences of 2 to 60 tokens, with a prompt of at least one token, and advantages of both signs."""
    generator = torch.Generator().manual_seed(seed)

    def ids(longest: int) -> tuple[int, ...]:
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        return tuple(torch.randint(0, vocab, (length,), generator=generator).tolist())

    return [Sequence(i, ids(20), ids(40), float(torch.randn((), generator=generator))) for i in range(count)]


def run_config(folder: Path, /, **sections: Any) -> RunConfig:
    """A config for a learner on the model in `folder`; `sections` such as `optimizer={"lr": 1e-3}`."""
    model_section = {"path": str(folder), **sections.pop("model", {})}
    return RunConfig.model_validate({"model": model_section, "data": {"path": "unused"}, **sections})


@torch.no_grad()
def hf_logprobs(model: torch.nn.Module, sequence: Sequence) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probs, entropies) of a sequence's response tokens, fp32 each, from the Hugging Face model alone."""
    ids = torch.tensor([sequence.prompt_ids + sequence.response_ids])
    logits = model(ids).logits[0].float()
    table = logits.log_softmax(-1)
    start = len(sequence.prompt_ids)
    logprobs = table[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0]
    entropy = -(table.exp() * table).sum(-1)[start - 1 : -1]
    return logprobs, entropy
