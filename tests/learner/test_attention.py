"""`sdpa` on packed sequences against attention written out, one sequence and one head at a time, in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from pyrl.config import ConfigError
from pyrl.learner.attention import SDPAttention, choose_attention
from pyrl.learner.packed import PackedInputs, pack_inputs
from pyrl.types import PackedBatch

HEAD_DIM = 10


def inputs_for(lengths: list[int]) -> PackedInputs:
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths])
    empty = torch.zeros_like(positions)
    batch = PackedBatch(
        tokens=empty, labels=empty, position_ids=positions, cu_seqlens=cu_seqlens, max_seqlen=max(lengths),
        response_mask=empty.bool(), advantages=empty.float(), token_uids=empty, rollout_logprobs=None,
        sample_indices=(),
    )  # fmt: skip
    return pack_inputs(batch, frequencies(), 1.0, rectangles=True)


def frequencies() -> torch.Tensor:
    return 100.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)


def rotated(x: torch.Tensor) -> torch.Tensor:
    """RoPE of one head [n, d], each pair (j, j + d/2) turned as a complex number."""
    half = HEAD_DIM // 2
    turn = torch.polar(
        torch.ones(len(x), half, dtype=x.dtype), torch.outer(torch.arange(len(x)), frequencies()).double()
    )
    pairs = torch.complex(x[:, :half], x[:, half:]) * turn
    return torch.cat([pairs.real, pairs.imag], dim=1)


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    group = q.shape[1] // k.shape[1]
    rows = []
    for qs, ks, vs in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        heads = []
        for head in range(q.shape[1]):
            scores = rotated(qs[:, head]) @ rotated(ks[:, head // group]).T / math.sqrt(HEAD_DIM)
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
            heads.append(scores.softmax(-1) @ vs[:, head // group])
        rows.append(torch.stack(heads, dim=1))
    return torch.cat(rows)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    "lengths",
    [[1], [7], [5, 5, 5], [1, 64, 2, 3, 40, 1, 41], [9, 0, 4], list(range(1, 31))],
    ids=["one token", "one sequence", "equal", "ragged", "an empty one", "every length"],
)
def test_output_and_gradients(lengths: list[int], kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    q, k, v = (
        torch.randn(sum(lengths), heads, HEAD_DIM, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, kv_heads, kv_heads)
    )
    upstream = torch.randn(q.shape, generator=generator, dtype=torch.float64)
    attention = SDPAttention(SimpleNamespace(kv_channels=HEAD_DIM), 1, None, "self")
    inputs = inputs_for(lengths)
    wanted = reference(q, k, v, lengths)
    wanted_grads = torch.autograd.grad((wanted * upstream).sum(), (q, k, v))
    got = attention(q, k, v, None, packed_seq_params=inputs)
    grads = torch.autograd.grad((got * upstream).sum(), (q, k, v))
    # cos and sin are made in fp32; the rest is float64.
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    for grad, want in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-5, atol=1e-5)


def test_rectangles_waste_little_and_lose_nothing() -> None:
    lengths = [3, 100, 17, 18, 20, 16, 90, 1, 1000]
    inputs = inputs_for(lengths)
    cells = sum(rows * columns for rows, columns in inputs.rectangles)
    assert sum(rows for rows, _ in inputs.rectangles) == len(lengths)
    assert cells <= sum(lengths) / 0.6
    assert torch.equal(inputs.tokens[inputs.cells], torch.arange(sum(lengths)))
    assert sorted([*inputs.cells.tolist(), *inputs.padding_cells.tolist()]) == list(range(cells))


@pytest.mark.parametrize("name", ["flash_attn", "torch_varlen"])
def test_cuda_attention_is_refused_on_a_cpu(name: str) -> None:
    with pytest.raises(ConfigError, match=f"model.attention '{name}' needs CUDA and this run is on cpu: use 'sdpa'"):
        choose_attention(name, torch.device("cpu"), torch.float32)


def test_cuda_attention_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the module flash_attn, which is not installed"):
        choose_attention("flash_attn", cuda, torch.bfloat16)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=r"needs model\.dtype bf16"):
        choose_attention("torch_varlen", cuda, torch.float32)
