"""How each model family's Hugging Face tensors lie in Megatron: one table for load, export and sync.

A `Rule` ties one Megatron parameter to the Hugging Face tensors it holds. Its `Layout` says how they are laid together
(the q, k and v heads of a group, gate and up, the padded vocabulary) and how tensor parallelism cuts the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pyrl.config import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Tensors = list[torch.Tensor]


@dataclass(frozen=True)
class ModelShape:
    """A model's dimensions, from its Hugging Face config."""

    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    norm_eps: float
    qkv_bias: bool
    tied_embeddings: bool

    @property
    def q_rows(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_rows(self) -> int:
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class Layout:
    """How Hugging Face tensors form one Megatron parameter.

    `shard` cuts rank `tp_rank`'s part out of full Hugging Face tensors; `merge` rebuilds those from all ranks' parts in
    rank order; `hf_shapes` are their shapes. `padded` is the padded vocabulary size.
    """

    shard: Callable[[Tensors, ModelShape, int, int, int], torch.Tensor]
    """(hf tensors, shape, padded, tp_rank, tp_size) -> this rank's parameter"""
    merge: Callable[[Tensors, ModelShape], Tensors]
    """(parts of every tp rank, shape) -> hf tensors"""
    hf_shapes: Callable[[ModelShape, int], list[tuple[int, ...]]]
    """(shape, number of dimensions of the parameter) -> shapes of the hf tensors"""
    partition_dim: int | None = 0
    """Dimension that tensor parallelism cuts. None: every rank holds the whole parameter."""


@dataclass(frozen=True)
class Rule:
    """One Megatron parameter and the Hugging Face tensors in it; `{i}` stands for the layer."""

    megatron: str
    hf: tuple[str, ...]
    layout: Layout
    ndim: int = 2

    def at(self, layer: int) -> Rule:
        return Rule(self.megatron, tuple(name.format(i=layer) for name in self.hf), self.layout, self.ndim)

    def hf_shapes(self, shape: ModelShape) -> list[tuple[int, ...]]:
        return self.layout.hf_shapes(shape, self.ndim)


@dataclass(frozen=True)
class Placed:
    """A rule on the pipeline stage that holds it, under the parameter's name there."""

    rule: Rule
    name: str
    stage: int


def _shard_vocab(tensors: Tensors, shape: ModelShape, padded: int, rank: int, size: int) -> torch.Tensor:
    (full,) = tensors
    rows = padded // size
    part = full.new_zeros(rows, full.shape[1])
    held = full[rank * rows : (rank + 1) * rows]
    part[: held.shape[0]] = held
    return part


def _shard_qkv(tensors: Tensors, shape: ModelShape, padded: int, rank: int, size: int) -> torch.Tensor:
    groups = [tensor.unflatten(0, (shape.num_kv_heads, -1)) for tensor in tensors]
    return torch.cat(groups, dim=1).flatten(0, 1).chunk(size)[rank]


def _merge_qkv(parts: Tensors, shape: ModelShape) -> Tensors:
    groups = torch.cat(parts).unflatten(0, (shape.num_kv_heads, -1))
    q_rows = shape.q_rows // shape.num_kv_heads
    return [t.flatten(0, 1) for t in groups.split([q_rows, shape.head_dim, shape.head_dim], dim=1)]


def _shard_gate_up(tensors: Tensors, shape: ModelShape, padded: int, rank: int, size: int) -> torch.Tensor:
    return torch.cat([tensor.chunk(size)[rank] for tensor in tensors])


def _merge_gate_up(parts: Tensors, shape: ModelShape) -> Tensors:
    halves = [part.chunk(2) for part in parts]
    return [torch.cat([half[i] for half in halves]) for i in range(2)]


_REPLICATED = Layout(
    shard=lambda tensors, shape, padded, rank, size: tensors[0],
    merge=lambda parts, shape: [parts[0]],
    hf_shapes=lambda shape, ndim: [(shape.hidden_size,)],
    partition_dim=None,
)
_VOCAB = Layout(
    shard=_shard_vocab,
    merge=lambda parts, shape: [torch.cat(parts)[: shape.vocab_size]],
    hf_shapes=lambda shape, ndim: [(shape.vocab_size, shape.hidden_size)],
)
_QKV = Layout(
    shard=_shard_qkv,
    merge=_merge_qkv,
    hf_shapes=lambda shape, ndim: [
        (rows, shape.hidden_size)[:ndim] for rows in (shape.q_rows, shape.kv_rows, shape.kv_rows)
    ],
)
_GATE_UP = Layout(
    shard=_shard_gate_up,
    merge=_merge_gate_up,
    hf_shapes=lambda shape, ndim: [(shape.ffn_size, shape.hidden_size)] * 2,
)


def _input_sharded(columns: Callable[[ModelShape], int]) -> Layout:
    """A row-parallel linear: each rank holds a slice of the input dimension."""
    return Layout(
        shard=lambda tensors, shape, padded, rank, size: tensors[0].chunk(size, dim=1)[rank],
        merge=lambda parts, shape: [torch.cat(parts, dim=1)],
        hf_shapes=lambda shape, ndim: [(shape.hidden_size, columns(shape))],
        partition_dim=1,
    )


_EMBEDDING = Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), _VOCAB)
_FINAL_NORM = Rule("decoder.final_layernorm.weight", ("model.norm.weight",), _REPLICATED, ndim=1)
_OUTPUT = Rule("output_layer.weight", ("lm_head.weight",), _VOCAB)
_HF_QKV = tuple(f"model.layers.{{i}}.self_attn.{p}_proj" for p in "qkv")
_LAYER = (
    Rule("input_layernorm.weight", ("model.layers.{i}.input_layernorm.weight",), _REPLICATED, ndim=1),
    Rule("self_attention.linear_qkv.weight", tuple(f"{p}.weight" for p in _HF_QKV), _QKV),
    Rule("self_attention.linear_qkv.bias", tuple(f"{p}.bias" for p in _HF_QKV), _QKV, ndim=1),
    Rule(
        "self_attention.linear_proj.weight",
        ("model.layers.{i}.self_attn.o_proj.weight",),
        _input_sharded(lambda shape: shape.q_rows),
    ),
    Rule("pre_mlp_layernorm.weight", ("model.layers.{i}.post_attention_layernorm.weight",), _REPLICATED, ndim=1),
    Rule(
        "mlp.linear_fc1.weight",
        ("model.layers.{i}.mlp.gate_proj.weight", "model.layers.{i}.mlp.up_proj.weight"),
        _GATE_UP,
    ),
    Rule("mlp.linear_fc2.weight", ("model.layers.{i}.mlp.down_proj.weight",), _input_sharded(lambda s: s.ffn_size)),
)


@dataclass(frozen=True)
class Family:
    """What one Hugging Face architecture needs."""

    name: str
    layer: Callable[[ModelShape], tuple[Rule, ...]]
    """Rules of one decoder layer, in Hugging Face order."""
    qkv_bias: bool
    required: dict[str, Any]
    """Config keys whose value must be this one: others change the mathematics in a way not built here."""


FAMILIES = {
    "Qwen2ForCausalLM": Family(
        name="qwen2",
        layer=lambda shape: _LAYER,
        qkv_bias=True,
        required={"use_sliding_window": False, "hidden_act": "silu"},
    ),
    "LlamaForCausalLM": Family(
        name="llama",
        layer=lambda shape: tuple(rule for rule in _LAYER if not rule.megatron.endswith(".bias")),
        qkv_bias=False,
        required={"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"},
    ),
}


def read_hf_config(folder: Path | str) -> PretrainedConfig:
    """The config of a Hugging Face folder, with its class's defaults filled in.

    Raises ConfigError: folder or config.json missing, unreadable or contradictory; an architecture with no table here.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        what = "holds no config.json" if folder.is_dir() else "is not a folder"
        raise ConfigError(f"model.path {folder} {what}: give a Hugging Face model folder")
    try:
        architectures = json.loads(path.read_text()).get("architectures") or ["none"]
    except (json.JSONDecodeError, AttributeError) as error:
        raise ConfigError(f"model.path: {path} is not a JSON object: {error}") from error
    if architectures[0] not in FAMILIES:
        raise ConfigError(
            f"model.path {folder}: architecture {architectures[0]!r} is not supported; supported: {', '.join(FAMILIES)}"
        )
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (StrictDataclassError, ValueError) as error:
        raise ConfigError(f"model.path: transformers cannot use {path}: {error}") from error


def read_shape(config: PretrainedConfig) -> ModelShape:
    """The dimensions of a model, from what `read_hf_config` returned.

    Raises ConfigError: a setting that changes the mathematics in a way the family's table does not hold.
    """
    family = FAMILIES[config.architectures[0]]
    for key, wanted in family.required.items():
        got = getattr(config, key, wanted)
        if got != wanted:
            raise ConfigError(f"model.path: {key} = {got!r} of {family.name} is not supported, only {wanted!r}")
    heads = config.num_attention_heads
    return ModelShape(
        family=config.architectures[0],
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=heads,
        num_kv_heads=config.num_key_value_heads or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        ffn_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        norm_eps=config.rms_norm_eps,
        qkv_bias=family.qkv_bias,
        tied_embeddings=bool(config.tie_word_embeddings),
    )


def parameter_rules(shape: ModelShape, pp_size: int, stage: int) -> list[Placed]:
    """Every parameter that a stage holds, the second copy of tied embeddings included."""
    copy = tied_copy(shape, pp_size)
    return [p for p in [*placed_rules(shape, pp_size), *([copy] if copy else [])] if p.stage == stage]


def placed_rules(shape: ModelShape, pp_size: int) -> list[Placed]:
    """Every parameter of the model in Hugging Face order, with the stage that holds it.

    The second copy of tied embeddings, on the last stage under pp > 1, is not among them: `tied_copy` is.
    """
    per_stage = shape.num_layers // pp_size
    placed = [Placed(_EMBEDDING, _EMBEDDING.megatron, 0)]
    for layer in range(shape.num_layers):
        stage, local = divmod(layer, per_stage)
        placed += [
            Placed(rule.at(layer), f"decoder.layers.{local}.{rule.megatron}", stage)
            for rule in FAMILIES[shape.family].layer(shape)
        ]
    placed.append(Placed(_FINAL_NORM, _FINAL_NORM.megatron, pp_size - 1))
    if not shape.tied_embeddings:
        placed.append(Placed(_OUTPUT, _OUTPUT.megatron, pp_size - 1))
    return placed


def tied_copy(shape: ModelShape, pp_size: int) -> Placed | None:
    """The last stage's own copy of tied embeddings under pp > 1, loaded from the embedding's tensor."""
    if not shape.tied_embeddings or pp_size == 1:
        return None
    return Placed(Rule(_OUTPUT.megatron, _EMBEDDING.hf, _VOCAB), _OUTPUT.megatron, pp_size - 1)


def hf_metadata(shape: ModelShape) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every Hugging Face tensor, in the order of `gather.iter_hf_weights`."""
    return [
        (name, size)
        for placed in placed_rules(shape, 1)
        for name, size in zip(placed.rule.hf, placed.rule.hf_shapes(shape), strict=True)
    ]
