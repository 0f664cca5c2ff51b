"""A Megatron GPTModel from a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from pyrl.config import ConfigError, ModelConfig, ParallelConfig
from pyrl.learner.attention import PackedAttention, choose_attention
from pyrl.learner.head import model_class
from pyrl.learner.parallel import Parallel
from pyrl.weights.families import ModelShape, parameter_rules, read_hf_config, read_shape
from pyrl.weights.hf_io import check_hf_weights, load_hf_weights

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Policy:
    """A loaded model and what the learner has to know of it."""

    model: GPTModel
    """Unwrapped, this rank's shard."""
    config: TransformerConfig
    shape: ModelShape
    padded_vocab_size: int
    inv_freq: torch.Tensor
    """fp32 [head_dim / 2]: RoPE's frequencies."""
    rope_scale: float
    """Factor of cos and sin."""


class MarkedRMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm with a weight that Megatron knows to be replicated under sequence parallelism.

    Without the mark its gradient, a sum over this rank's tokens alone, is never reduced.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(
            hidden_size,
            eps=eps,
            dtype=config.params_dtype,
            device=torch.cuda.current_device() if not config.use_cpu_initialization else None,
        )
        self.weight.sequence_parallel = config.sequence_parallel


@dataclass(frozen=True)
class PolicyPlan:
    """A model that was read and checked, before anything is built."""

    dtype: torch.dtype
    shape: ModelShape
    padded_vocab_size: int
    max_positions: int
    """Longest sequence, tokens."""
    attention: type[PackedAttention]
    inv_freq: torch.Tensor
    """fp32 [head_dim / 2]"""
    rope_scale: float


def plan_policy(config: ModelConfig, parallel: Parallel) -> PolicyPlan:
    """Read the model in `config.path`, its weights' headers included, and check that it can be built here.

    Raises ConfigError: a missing or unsupported model, sizes that do not divide by tp or pp, a padded vocabulary that
    is too small or not divisible by tp, an attention that cannot run here, weights that are not those of the config.
    """
    dtype = _DTYPES[config.dtype]
    if dtype is torch.bfloat16 and parallel.device.type != "cuda":
        raise ConfigError("model.dtype 'bf16' needs CUDA: use 'fp32' on a CPU")
    hf_config = read_hf_config(config.path)
    shape = read_shape(hf_config)
    _check_divisible(shape, parallel)
    padded = padded_vocab_size(shape.vocab_size, parallel.tp_size, config.padded_vocab_size)
    inv_freq, rope_scale = rope_frequencies(hf_config)
    attention = choose_attention(config.attention, parallel.device, dtype)
    check_hf_weights(shape, config.path)
    return PolicyPlan(dtype, shape, padded, max_positions(hf_config), attention, inv_freq, rope_scale)


def build_policy(config: ModelConfig, parallel_config: ParallelConfig, parallel: Parallel) -> Policy:
    """Build this rank's shard of the model in `config.path` and load its weights; raises as `plan_policy`."""
    plan = plan_policy(config, parallel)
    shape, padded = plan.shape, plan.padded_vocab_size
    megatron_config = _transformer_config(config, parallel_config, parallel, shape, plan.dtype)
    model = model_class(config)(
        config=megatron_config,
        transformer_layer_spec=_layer_specs(plan.attention, megatron_config, parallel),
        vocab_size=padded,
        max_sequence_length=plan.max_positions,
        pre_process=parallel.is_first_stage,
        post_process=parallel.is_last_stage,
        parallel_output=True,
        share_embeddings_and_output_weights=shape.tied_embeddings,
        position_embedding_type="none",  # RoPE is applied by the core attention
    )
    _mark_shards(model, shape, parallel)
    load_hf_weights(
        model, shape, config.path, padded_vocab_size=padded,
        tp_rank=parallel.tp_rank, tp_size=parallel.tp_size, pp_rank=parallel.pp_rank, pp_size=parallel.pp_size,
    )  # fmt: skip
    return Policy(model, megatron_config, shape, padded, plan.inv_freq.to(parallel.device), plan.rope_scale)


def padded_vocab_size(vocab_size: int, tp_size: int, requested: int | None = None) -> int:
    """Rows of the embedding: `requested`, or the smallest multiple of 128 tp that holds the vocabulary.

    Raises ConfigError where `requested` is smaller than the vocabulary or not divisible by tp.
    """
    if requested is None:
        multiple = 128 * tp_size
        return -(-vocab_size // multiple) * multiple
    if requested < vocab_size:
        raise ConfigError(
            f"model.padded_vocab_size {requested} is smaller than the model's vocabulary of {vocab_size}: raise it, or "
            "use null"
        )
    if requested % tp_size:
        raise ConfigError(
            f"model.padded_vocab_size {requested} is not divisible by parallel.tp {tp_size}: use a multiple, or null"
        )
    return requested


def max_positions(hf_config: Any) -> int:
    """The longest sequence, tokens: linear RoPE scaling comes on top of the config's number, llama3's is in it."""
    parameters = hf_config.rope_parameters
    factor = parameters["factor"] if parameters.get("rope_type") == "linear" else 1.0
    return int(hf_config.max_position_embeddings * factor)


def rope_frequencies(hf_config: Any) -> tuple[torch.Tensor, float]:
    """(inverse frequencies fp32 [head_dim / 2], factor of cos and sin) as transformers computes them.

    Raises ConfigError for a scaling whose frequencies depend on the length of the input.
    """
    parameters = hf_config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind not in _ROPE_TYPES:
        raise ConfigError(f"model.path: RoPE scaling {kind!r} is not supported; supported: {', '.join(_ROPE_TYPES)}")
    if kind == "default":
        dim = getattr(hf_config, "head_dim", None) or hf_config.hidden_size // hf_config.num_attention_heads
        return 1.0 / parameters["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim), 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    inv_freq, scale = ROPE_INIT_FUNCTIONS[kind](hf_config, device=torch.device("cpu"))
    return inv_freq.float(), float(scale)


def _check_divisible(shape: ModelShape, parallel: Parallel) -> None:
    tp, pp = parallel.tp_size, parallel.pp_size
    sizes = {"attention heads": shape.num_heads, "feed-forward size": shape.ffn_size}
    for what, size in sizes.items():
        if size % tp:
            raise ConfigError(f"parallel.tp {tp} does not divide the model's {what} {size}: use a divisor")
    if shape.num_kv_heads % tp and tp % shape.num_kv_heads:
        raise ConfigError(f"parallel.tp {tp} and the model's {shape.num_kv_heads} kv heads do not divide one another")
    if shape.num_layers % pp:
        raise ConfigError(f"parallel.pp {pp} does not divide the model's {shape.num_layers} layers: use a divisor")


def _mark_shards(model: GPTModel, shape: ModelShape, parallel: Parallel) -> None:
    """Tell Megatron which parameters are shards of a larger one.

    Its initialisation does so, and we skip that. An unmarked shard counts as a copy of rank 0's, and the gradient norm,
    and with it clipping, silently leaves it out.
    """
    parameters = dict(model.named_parameters())
    for placed in parameter_rules(shape, parallel.pp_size, parallel.pp_rank):
        dim = placed.rule.layout.partition_dim
        if dim is not None and not hasattr(parameters[placed.name], "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(parameters[placed.name], True, dim, 1)


def _transformer_config(
    config: ModelConfig, parallel_config: ParallelConfig, parallel: Parallel, shape: ModelShape, dtype: torch.dtype
) -> TransformerConfig:
    on_cpu = parallel.device.type == "cpu"
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        num_query_groups=shape.num_kv_heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn_size,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=parallel.tp_size,
        pipeline_model_parallel_size=parallel.pp_size,
        sequence_parallel=parallel_config.sequence_parallel,
        variable_seq_lengths=parallel.pp_size > 1,
        moe_token_dispatcher_type="alltoall",  # dense model; variable_seq_lengths demands it
        # The gradient is the plain sum over tokens: neither micro-batches nor ranks average it.
        calculate_per_token_loss=True,
        use_cpu_initialization=on_cpu,
        perform_initialization=False,  # every parameter is loaded
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        cuda_graph_scope=[],  # the default is a name that Megatron-Core itself calls deprecated
        **_recompute(config.recompute),
    )


def _recompute(name: str) -> dict[str, Any]:
    if name == "none":
        return {}
    if name == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def _layer_specs(
    attention: type[PackedAttention], megatron_config: TransformerConfig, parallel: Parallel
) -> TransformerBlockSubmodules:
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer = spec.submodules
    layer.input_layernorm = layer.pre_mlp_layernorm = MarkedRMSNorm
    layer.self_attention.submodules.core_attention = attention
    # Megatron-Core warns of a layer that leaves it to the config.
    layer.mlp.params["ffn_hidden_size"] = megatron_config.ffn_hidden_size
    layers = megatron_config.num_layers // parallel.pp_size
    return TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=MarkedRMSNorm)
