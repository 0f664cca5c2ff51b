"""Core attention on packed sequences: causal, grouped-query, chosen by name.

`sdpa` is exact and runs anywhere; `flash_attn` and `torch_varlen` are CUDA kernels that read the packed layout itself.
Each is a Megatron core-attention module. RoPE is applied here, from tables made once per micro-batch: Megatron's own
packed RoPE splits the batch into its sequences on the host, in every layer, for q and again for k.
"""

from __future__ import annotations

import importlib.util
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from torch.nn.functional import scaled_dot_product_attention

from pyrl.config import ConfigError
from pyrl.learner.packed import PackedInputs


class PackedAttention(MegatronModule, ABC):
    """Base: RoPE, then `attend`. q [T, heads, d], k and v [T, kv heads, d] -> [T, heads, d]."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__(config=config)
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedInputs | None = None,
    ) -> torch.Tensor:
        assert packed_seq_params is not None, "attention needs packed sequences"
        cos, sin = packed_seq_params.rope_cos, packed_seq_params.rope_sin
        query, key = _Rotate.apply(query, cos, sin), _Rotate.apply(key, cos, sin)
        return self.attend(query, key, value, packed_seq_params)

    @abstractmethod
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packed: PackedInputs) -> torch.Tensor: ...


class SDPAttention(PackedAttention):
    """torch's scaled_dot_product_attention on rectangles of sequences of similar length.

    Padding stands at the right end of a row, so under the causal mask no token sees it.
    """

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packed: PackedInputs) -> torch.Tensor:
        repeats = q.shape[1] // k.shape[1]
        sizes = [rows * columns for rows, columns in packed.rectangles]
        cells = [_ToRectangles.apply(t, packed) for t in (q, k, v)]
        parts = [t.split(sizes) for t in cells] if len(sizes) > 1 else [(t,) for t in cells]
        outputs = []
        for size, *rectangle in zip(packed.rectangles, *parts, strict=True):
            qkv = [t.unflatten(0, size).transpose(1, 2) for t in rectangle]
            attended = scaled_dot_product_attention(*qkv, is_causal=True, scale=self.scale, enable_gqa=repeats > 1)
            outputs.append(attended.transpose(1, 2).flatten(0, 1))
        return _FromRectangles.apply(torch.cat(outputs) if len(outputs) > 1 else outputs[0], packed)


class FlashAttention(PackedAttention):
    """flash-attn's variable-length kernel."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packed: PackedInputs) -> torch.Tensor:
        from flash_attn import flash_attn_varlen_func

        lengths, longest = packed.cu_seqlens_q, packed.max_seqlen_q
        return flash_attn_varlen_func(
            q, k, v, lengths, lengths, longest, longest, softmax_scale=self.scale, causal=True
        )


class TorchVarlenAttention(PackedAttention):
    """torch's own variable-length flash attention."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packed: PackedInputs) -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn

        lengths, longest = packed.cu_seqlens_q, packed.max_seqlen_q
        grouped = q.shape[1] != k.shape[1]
        # A left window without bound and a right one of 0 is the causal mask.
        return varlen_attn(
            q, k, v, lengths, lengths, longest, longest, scale=self.scale, window_size=(-1, 0), enable_gqa=grouped
        )


_BY_NAME: dict[str, type[PackedAttention]] = {
    "sdpa": SDPAttention,
    "flash_attn": FlashAttention,
    "torch_varlen": TorchVarlenAttention,
}
_LIBRARY = {"flash_attn": "flash_attn", "torch_varlen": "torch.nn.attention.varlen"}


def choose_attention(name: str, device: torch.device, dtype: torch.dtype) -> type[PackedAttention]:
    """The core-attention module called `name`, one of sdpa, flash_attn, torch_varlen.

    Raises ConfigError: no CUDA, a library that is not installed, or a dtype the kernel does not take.
    """
    if name == "sdpa":
        return SDPAttention
    if device.type != "cuda":
        raise ConfigError(f"model.attention {name!r} needs CUDA and this run is on {device.type}: use 'sdpa'")
    if importlib.util.find_spec(_LIBRARY[name]) is None:
        raise ConfigError(f"model.attention {name!r} needs the module {_LIBRARY[name]}, which is not installed")
    if dtype not in (torch.bfloat16, torch.float16):
        raise ConfigError(f"model.attention {name!r} needs model.dtype bf16, got {dtype}: use 'sdpa' or bf16")
    return _BY_NAME[name]


class _Rotate(torch.autograd.Function):
    """RoPE with rotated halves: [x1, x2] -> [x1 cos - x2 sin, x2 cos + x1 sin]; its gradient rotates back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, -sin), None, None


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out


class _ToRectangles(torch.autograd.Function):
    """[T, heads, d] -> [cells, heads, d]. No gradient comes from padding cells (see `_FromRectangles`), so the backward
    pass is a gather too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: PackedInputs) -> torch.Tensor:
        ctx.packed = packed
        return x.index_select(0, packed.tokens)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.index_select(0, ctx.packed.cells), None


class _FromRectangles(torch.autograd.Function):
    """[cells, heads, d] -> [T, heads, d]; the gradient of padding cells is zero."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: PackedInputs) -> torch.Tensor:
        ctx.packed = packed
        return x.index_select(0, packed.cells)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        packed = ctx.packed
        return grad.index_select(0, packed.tokens).index_fill_(0, packed.padding_cells, 0.0), None
