"""Sizes, RoPE frequencies and process groups: what is computed, and what is refused with which words."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pyrl.config import ConfigError, ParallelConfig
from pyrl.learner.model import max_positions, padded_vocab_size, rope_frequencies
from pyrl.learner.parallel import init_parallel


@pytest.mark.parametrize(
    ("vocab", "tp", "requested", "wanted"),
    [(1, 1, None, 128), (128, 1, None, 128), (129, 1, None, 256), (129, 2, None, 256), (257, 2, None, 512),
     (151643, 4, None, 152064), (211, 1, 211, 211), (211, 2, 212, 212)],
)  # fmt: skip
def test_padded_vocabulary(vocab: int, tp: int, requested: int | None, wanted: int) -> None:
    assert padded_vocab_size(vocab, tp, requested) == wanted


def test_padded_vocabulary_too_small_or_not_divisible() -> None:
    with pytest.raises(ConfigError, match="padded_vocab_size 210 is smaller than the model's vocabulary of 211"):
        padded_vocab_size(211, 1, 210)
    with pytest.raises(ConfigError, match=r"padded_vocab_size 213 is not divisible by parallel\.tp 2"):
        padded_vocab_size(211, 2, 213)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 1234.5},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
        {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64},
    ],
    ids=lambda rope: rope["rope_type"],
)  # fmt: skip
def test_rope_frequencies_equal_the_hugging_face_module(rope: dict[str, float]) -> None:
    config = LlamaConfig(hidden_size=72, num_attention_heads=6, head_dim=20, rope_parameters=rope)
    module = LlamaRotaryEmbedding(config)
    frequencies, scale = rope_frequencies(config)
    assert torch.equal(frequencies, module.inv_freq)
    assert scale == module.attention_scaling


@pytest.mark.parametrize(
    ("rope", "positions"),
    [({}, 512), ({"rope_type": "linear", "factor": 3.0}, 1536),
     ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
       "original_max_position_embeddings": 64}, 512)],
    ids=["default", "linear", "llama3"],
)  # fmt: skip
def test_linear_rope_scaling_adds_positions(rope: dict[str, float], positions: int) -> None:
    config = LlamaConfig(max_position_embeddings=512, rope_parameters={"rope_theta": 1e4} | rope)
    assert max_positions(config) == positions


def test_rope_scaling_that_depends_on_the_input_is_refused() -> None:
    config = LlamaConfig(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0})
    with pytest.raises(ConfigError, match="RoPE scaling 'yarn' is not supported; supported: default, linear, llama3"):
        rope_frequencies(config)


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (4, 2)])
def test_world_size_that_does_not_divide(monkeypatch: pytest.MonkeyPatch, tp: int, pp: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=rf"world size 3 is not divisible by parallel.tp {tp} x parallel.pp {pp}"):
        init_parallel(ParallelConfig(tp=tp, pp=pp))
