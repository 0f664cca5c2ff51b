"""Log-probs of packed sequences in Megatron against Hugging Face, a sequence at a time; weights there and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pyrl.config import ParallelConfig
from pyrl.data.packing import pack
from pyrl.learner.learner import Learner
from pyrl.learner.parallel import Parallel, destroy_parallel, init_parallel
from pyrl.types import Sequence
from tests.learner.tiny import hf_logprobs, random_sequences, run_config, save_tiny_model

TOLERANCE = 1e-4
"""Largest difference of a log-prob or an entropy, fp32."""
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def parallel() -> Iterator[Parallel]:
    yield init_parallel(ParallelConfig())
    destroy_parallel()


def largest_gap(learner: Learner, model: torch.nn.Module, sequences: list[Sequence]) -> float:
    batch = pack(sequences, pad_multiple=16)
    (score,) = learner.score([batch])
    wanted = [torch.cat(parts) for parts in zip(*(hf_logprobs(model, s) for s in sequences), strict=True)]
    mask = batch.response_mask
    assert score.logprobs[~mask].abs().sum() == 0
    assert score.entropy[~mask].abs().sum() == 0
    got = [score.logprobs[mask], score.entropy[mask]]
    assert wanted[0].std() > 0.1, "a policy this flat would hide errors"
    return max((g - w).abs().max().item() for g, w in zip(got, wanted, strict=True))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_random_models(tmp_path: Path, parallel: Parallel, family: str, tied: bool) -> None:
    model = save_tiny_model(family, tmp_path, tied=tied)
    learner = Learner(run_config(tmp_path), parallel)
    assert largest_gap(learner, model, random_sequences(12)) <= TOLERANCE


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "rope_theta": 2e4, "factor": 2.0},
        LLAMA3_ROPE,
        {"rope_type": "default", "rope_theta": 77.0},
    ],
    ids=["linear", "llama3", "other theta"],
)
def test_rope_settings(tmp_path: Path, parallel: Parallel, rope: dict[str, float]) -> None:
    model = save_tiny_model("llama", tmp_path, rope_parameters=rope)
    learner = Learner(run_config(tmp_path), parallel)
    assert largest_gap(learner, model, random_sequences(12)) <= TOLERANCE


def test_one_kv_head_for_all_and_a_kv_head_for_each(tmp_path: Path, parallel: Parallel) -> None:
    for heads in (1, 6):
        model = save_tiny_model("qwen2", tmp_path / str(heads), num_key_value_heads=heads)
        learner = Learner(run_config(tmp_path / str(heads)), parallel)
        assert largest_gap(learner, model, random_sequences(6)) <= TOLERANCE


def test_vocabulary_padding_changes_nothing(tmp_path: Path, parallel: Parallel) -> None:
    model = save_tiny_model("qwen2", tmp_path, tied=False)
    for padded in (211, 300, 1024):
        learner = Learner(run_config(tmp_path, model={"padded_vocab_size": padded}), parallel)
        assert learner.policy.padded_vocab_size == padded
        assert largest_gap(learner, model, random_sequences(6)) <= TOLERANCE


@pytest.mark.slow
def test_real_weights_of_smollm2(smollm2: Path, parallel: Parallel) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    texts = [
        "What is 12 + 30? 12 + 30 is 42.",
        "The capital of France is Paris, and the capital of Italy is Rome.",
        "a b",
    ]
    ids = [tuple(tokenizer(text).input_ids) for text in texts]
    sequences = [Sequence(i, row[:1], row[1:], 1.0) for i, row in enumerate(ids)]
    learner = Learner(run_config(smollm2), parallel)
    assert largest_gap(learner, model, sequences) <= TOLERANCE


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_export_returns_the_same_bits_and_loads(tmp_path: Path, parallel: Parallel, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    model = save_tiny_model("qwen2", source, tied=tied)
    (source / "tokenizer_config.json").write_text('{"note": "goes along"}')
    learner = Learner(run_config(source), parallel)
    learner.export_hf(target)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, target))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((target / "tokenizer_config.json").read_text()) == {"note": "goes along"}
    loaded = AutoModelForCausalLM.from_pretrained(target, attn_implementation="eager").eval()
    ids = torch.arange(20)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)
