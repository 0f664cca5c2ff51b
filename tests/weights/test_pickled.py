"""`pytorch_model*.bin` folders, as transformers wrote them, to safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from pyrl.config import ConfigError
from pyrl.weights import hf_io
from pyrl.weights.hf_io import has_pickled_weights
from pyrl.weights.pickled import convert_pickled


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=60, tie_word_embeddings=True, **sizes)).bfloat16()


def write(model: LlamaForCausalLM, folder: Path, files: int, **save: bool) -> Path:
    """The folder that `save_pretrained(safe_serialization=False)` of earlier transformers wrote."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    tensors = list(model.state_dict().items())  # the tied head, which shares its memory, is among them
    if files == 1:
        torch.save(dict(tensors), folder / "pytorch_model.bin", **save)
        return folder
    names = [f"pytorch_model-{i + 1:05d}-of-{files:05d}.bin" for i in range(files)]
    for i, name in enumerate(names):
        torch.save(dict(tensors[i::files]), folder / name, **save)
    weight_map = {tensor: names[i % files] for i, (tensor, _) in enumerate(tensors)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(("files", "archive"), [(1, True), (3, True), (1, False)])
def test_the_same_tensors_to_the_bit(model: LlamaForCausalLM, tmp_path: Path, files: int, archive: bool) -> None:
    source = write(model, tmp_path / "bin", files, _use_new_zipfile_serialization=archive)
    assert has_pickled_weights(source)
    made = convert_pickled(source, tmp_path / "new")
    found = load_file(made / "model.safetensors")
    assert found.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert found[name].dtype == torch.bfloat16 and torch.equal(found[name], tensor), name
    _, said = LlamaForCausalLM.from_pretrained(made, output_loading_info=True)
    assert not any(said.values()), said
    assert sorted(file.name for file in made.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_what_cannot_be_converted_leaves_nothing(model: LlamaForCausalLM, tmp_path: Path) -> None:
    source = write(model, tmp_path / "bin", 2)
    new = tmp_path / "new"
    first = source / "pytorch_model-00001-of-00002.bin"
    whole = first.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            convert_pickled(source, new)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]

    first.write_bytes(whole[: len(whole) // 2])
    refused("00001-of-00002.bin cannot be read as tensors alone")
    torch.save({"a": print}, first)
    refused("00001-of-00002.bin cannot be read as tensors alone: Weights only load failed")
    for other in ({"a": 1}, {}, [torch.ones(2)]):
        torch.save(other, first)
        refused("holds no table of tensors by name")
    first.unlink()
    refused("names pytorch_model-00001-of-00002.bin, which .*bin lacks")
    (source / "pytorch_model.bin.index.json").write_text("[]")
    refused("is not an index of weights")
    first.write_bytes(whole)
    new.mkdir()
    with pytest.raises(ConfigError, match="exists: remove it"):
        convert_pickled(source, new)


def test_numbers_before_the_weights_do_not_name_the_models_dtype(model: LlamaForCausalLM, tmp_path: Path) -> None:
    source = write(model, tmp_path / "bin", 1)
    torch.save({"positions": torch.arange(4)} | model.state_dict(), source / "pytorch_model.bin")
    made = convert_pickled(source, tmp_path / "new")
    assert json.loads((made / "config.json").read_text())["dtype"] == "bfloat16"


def test_memory_does_not_grow_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """418 MB in one file: whenever a shard of 50 MB is written, no more than two of them are in memory."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.save({f"t{i}": torch.full((8_700_000,), float(i)) for i in range(12)}, folder / "pytorch_model.bin")
    before, taken, save = anonymous_bytes(), [], hf_io._save

    def watched(shard: dict[str, torch.Tensor], file: Path) -> None:
        taken.append(anonymous_bytes() - before)
        save(shard, file)

    monkeypatch.setattr(hf_io, "_SHARD_BYTES", 50_000_000)
    monkeypatch.setattr(hf_io, "_save", watched)
    made = convert_pickled(folder, tmp_path / "new")
    assert len(taken) == 12 and max(taken) < 120_000_000
    last = load_file(sorted(made.glob("*.safetensors"))[-1])
    assert all(bool((tensor == float(name[1:])).all()) for name, tensor in last.items())


def anonymous_bytes() -> int:
    """Memory of this process that no file stands behind."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024
