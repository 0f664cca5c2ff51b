"""Reading and writing Hugging Face folders: shards, damage, and a folder that is whole or absent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyrl.config import ConfigError
from pyrl.weights import hf_io
from pyrl.weights.families import read_hf_config, read_shape
from pyrl.weights.hf_io import HFTensors, load_hf_weights, save_hf_folder
from tests.learner.tiny import save_tiny_model


class NoParameters(torch.nn.Module):
    """Stands in for the model where loading stops before it is touched."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_model("qwen2", tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path) -> None:
    load_hf_weights(NoParameters(), read_shape(read_hf_config(folder)), folder, padded_vocab_size=256)


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({n: t for n, t in tensors.items() if t is not None}, folder / "model.safetensors", {"format": "pt"})


def test_sharded_and_single_folders_hold_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    single = load_file(folder / "model.safetensors")
    monkeypatch.setattr(hf_io, "_SHARD_BYTES", 100_000)
    sharded = folder.parent / "sharded"
    save_hf_folder(iter(single.items()), folder, sharded)
    files = sorted(p.name for p in sharded.glob("*.safetensors"))
    assert len(files) >= 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    reader = HFTensors(sharded)
    assert reader.names() == set(single)
    assert all(torch.equal(reader.get(name), tensor) for name, tensor in single.items())
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in single.values())

    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(sharded).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in single.items())


def test_config_of_an_export_states_the_dtype(folder: Path) -> None:
    tensors = {n: t.bfloat16() for n, t in load_file(folder / "model.safetensors").items()}
    save_hf_folder(tensors.items(), folder, folder.parent / "out")
    config = json.loads((folder.parent / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["architectures"] == ["Qwen2ForCausalLM"]


def test_an_error_in_the_middle_leaves_the_older_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_io, "_SHARD_BYTES", 1000)
    target = folder.parent / "out"
    save_hf_folder([("a", torch.zeros(3))], folder, target)

    def breaks() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.ones(500)
        yield "b", torch.ones(500)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_hf_folder(breaks(), folder, target)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model", "out"]
    assert torch.equal(load_file(target / "model.safetensors")["a"], torch.zeros(3))


def test_a_newer_export_replaces_the_older(folder: Path) -> None:
    target = folder.parent / "out"
    for value in (1.0, 2.0):
        save_hf_folder([("a", torch.full((3,), value))], folder, target)
    assert load_file(target / "model.safetensors")["a"].tolist() == [2.0] * 3
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model", "out"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.norm.weight": None}, "holds no tensor 'model.norm.weight': the checkpoint is incomplete"),
        ({"model.norm.weight": torch.zeros(5)}, r"model.norm.weight is \(5,\), config.json says \(72,\)"),
        ({"model.extra.weight": torch.zeros(5)}, "1 tensors have no place in the model, such as 'model.extra.weight'"),
        ({"model.norm.weight": torch.ones(72).index_fill(0, torch.tensor([5, 9]), torch.nan)},
         r"model.norm.weight holds 2 values that are NaN or infinite, the first nan at \[5\]"),
        ({"model.norm.weight": torch.ones(72).index_fill(0, torch.tensor([7]), -torch.inf)},
         r"model.norm.weight holds 1 values that are NaN or infinite, the first -inf at \[7\]"),
    ],
)
def test_weights_that_do_not_fit(folder: Path, changes: dict[str, torch.Tensor | None], message: str) -> None:
    rewrite(folder, **changes)
    shape = read_shape(read_hf_config(folder))
    from pyrl.weights.families import placed_rules

    model = torch.nn.Module()
    padded = 256
    for placed in placed_rules(shape, 1):  # parameters of the right sizes, under Megatron's names
        full = [torch.zeros(size) for size in placed.rule.hf_shapes(shape)]
        owner = model
        *path, last = placed.name.split(".")
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, torch.nn.Module())
            owner = getattr(owner, part)
        owner.register_parameter(last, torch.nn.Parameter(placed.rule.layout.shard(full, shape, padded, 0, 1)))
    with pytest.raises(ConfigError, match=message):
        load_hf_weights(model, shape, folder, padded_vocab_size=padded)


def test_rotary_tables_and_a_second_copy_of_a_tied_head_are_ignored(folder: Path) -> None:
    head = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].clone()
    rewrite(folder, **{"lm_head.weight": head, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(3)})
    with pytest.raises(KeyError, match=r"embedding\.word_embeddings\.weight"):  # past every check, at the empty model
        load(folder)


def test_damaged_folders(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match=r"model.safetensors cannot be read as safetensors"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"holds no \*.safetensors: copy the model's weights into it"):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=rf"holds no \*.safetensors: convert it first: `pyrl convert {folder} NEW"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ConfigError, match="is not a safetensors index"):
        load(folder)
    names = {"model.embed_tokens.weight": "gone.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ConfigError, match=r"gone.safetensors cannot be read"):
        load(folder)
