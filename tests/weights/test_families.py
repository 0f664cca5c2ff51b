"""The tables that tie Hugging Face tensors to Megatron parameters, and what reading a config refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrl.config import ConfigError
from pyrl.weights.families import (
    FAMILIES,
    ModelShape,
    hf_metadata,
    parameter_rules,
    placed_rules,
    read_hf_config,
    read_shape,
)
from tests.learner.tiny import save_tiny_model


@st.composite
def shapes(draw: st.DrawFn) -> tuple[ModelShape, int]:
    """A shape, and a tensor-parallel size that it admits."""
    tp = draw(st.sampled_from([1, 2, 4]))
    kv_heads = draw(st.integers(1, 3)) * tp
    shape = ModelShape(
        family=draw(st.sampled_from(sorted(FAMILIES))),
        num_layers=2,
        hidden_size=draw(st.integers(1, 9)),
        num_heads=kv_heads * draw(st.integers(1, 3)),
        num_kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 3)),
        ffn_size=tp * draw(st.integers(1, 5)),
        vocab_size=draw(st.integers(1, 30)),
        norm_eps=1e-6,
        qkv_bias=True,
        tied_embeddings=draw(st.booleans()),
    )
    return shape, tp


def numbered(shape: ModelShape) -> dict[str, torch.Tensor]:
    """Hugging Face tensors in which no two elements are equal."""
    tensors, start = {}, 1
    for name, size in hf_metadata(shape):
        count = torch.Size(size).numel()
        tensors[name] = torch.arange(start, start + count, dtype=torch.float64).view(size)
        start += count
    return tensors


@settings(deadline=None, max_examples=40)
@given(shapes())
def test_merging_the_shards_gives_the_tensors_back(drawn: tuple[ModelShape, int]) -> None:
    shape, tp = drawn
    padded = -(-shape.vocab_size // tp) * tp + tp
    tensors = numbered(shape)
    for placed in placed_rules(shape, 1):
        layout = placed.rule.layout
        full = [tensors[name] for name in placed.rule.hf]
        parts = [layout.shard(full, shape, padded, rank, tp) for rank in range(tp)]
        assert len({part.shape for part in parts}) == 1
        for merged, wanted in zip(layout.merge(parts, shape), full, strict=True):
            assert torch.equal(merged, wanted), placed.name


@settings(deadline=None, max_examples=40)
@given(shapes())
def test_every_rank_holds_whole_heads_and_matching_gate_and_up(drawn: tuple[ModelShape, int]) -> None:
    """Each rank's part, read by Megatron's rule for one rank, is that rank's heads and feed-forward rows."""
    shape, tp = drawn
    tensors = numbered(shape)
    q, k, v = (tensors[f"model.layers.1.self_attn.{p}_proj.weight"] for p in "qkv")
    gate, up = (tensors[f"model.layers.1.mlp.{p}_proj.weight"] for p in ("gate", "up"))
    rules = {placed.name.removeprefix("decoder.layers.1."): placed.rule for placed in placed_rules(shape, 1)}
    per_group, d = shape.num_heads // shape.num_kv_heads, shape.head_dim
    for rank in range(tp):
        qkv = rules["self_attention.linear_qkv.weight"].layout.shard([q, k, v], shape, 0, rank, tp)
        groups = qkv.view(shape.num_kv_heads // tp, per_group + 2, d, -1)
        for local, group in enumerate(groups):
            index = rank * shape.num_kv_heads // tp + local
            assert torch.equal(group[:per_group].flatten(0, 1), q[index * per_group * d : (index + 1) * per_group * d])
            assert torch.equal(group[per_group], k[index * d : (index + 1) * d])
            assert torch.equal(group[per_group + 1], v[index * d : (index + 1) * d])
        fc1 = rules["mlp.linear_fc1.weight"].layout.shard([gate, up], shape, 0, rank, tp)
        rows = shape.ffn_size // tp
        assert torch.equal(fc1[:rows], gate[rank * rows : (rank + 1) * rows])
        assert torch.equal(fc1[rows:], up[rank * rows : (rank + 1) * rows])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_names_and_shapes_are_those_of_transformers(tmp_path: Path, family: str, tied: bool) -> None:
    model = save_tiny_model(family, tmp_path, tied=tied)
    shape = read_shape(read_hf_config(tmp_path))
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}  # a tied head is not listed
    metadata = hf_metadata(shape)
    assert dict(metadata) == wanted
    assert len(metadata) == len(wanted)
    assert shape.head_dim == 20
    assert shape.tied_embeddings is tied


@pytest.mark.parametrize("tied", [True, False])
def test_stages_hold_every_parameter_once_and_tied_embeddings_twice(tmp_path: Path, tied: bool) -> None:
    save_tiny_model("qwen2", tmp_path, tied=tied, num_hidden_layers=4)
    shape = read_shape(read_hf_config(tmp_path))
    stages = [parameter_rules(shape, 2, stage) for stage in range(2)]
    layers = [sorted({p.name.split(".")[2] for p in stage if "layers" in p.name}) for stage in stages]
    assert layers == [["0", "1"], ["0", "1"]]
    assert [p.rule.hf[0] for p in stages[1] if p.name == "decoder.layers.0.input_layernorm.weight"] == [
        "model.layers.2.input_layernorm.weight"
    ]
    assert stages[0][0].name == "embedding.word_embeddings.weight"
    assert stages[1][-1].name == "output_layer.weight"
    assert stages[1][-1].rule.hf == (("model.embed_tokens.weight",) if tied else ("lm_head.weight",))
    names = [name for stage in stages for placed in stage for name in placed.rule.hf]
    assert len(names) - len(set(names)) == int(tied)


def write_config(folder: Path, **changes: Any) -> Path:
    save_tiny_model("llama", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_unknown_architecture_names_the_supported_ones(tmp_path: Path) -> None:
    write_config(tmp_path, architectures=["MambaForCausalLM"])
    with pytest.raises(ConfigError, match=r"'MambaForCausalLM' is not supported; supported: Qwen2.*, Llama"):
        read_hf_config(tmp_path)


def test_a_config_that_contradicts_itself_is_refused_with_the_reason_of_transformers(tmp_path: Path) -> None:
    save_tiny_model("qwen2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    layers = config["num_hidden_layers"] + 1
    (tmp_path / "config.json").write_text(json.dumps(config | {"layer_types": ["full_attention"] * layers}))
    with pytest.raises(ConfigError, match=rf"model.path: transformers cannot use .*config.json: [\s\S]*\({layers}\)"):
        read_hf_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias = True of llama is not supported, only False"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' of llama is not supported, only 'silu'"),
    ],
)
def test_settings_that_change_the_mathematics_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_config(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        read_shape(read_hf_config(tmp_path))


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.path .*absent is not a folder"):
        read_hf_config(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"holds no config.json"):
        read_hf_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not a JSON object"):
        read_hf_config(tmp_path)
