from __future__ import annotations

import hashlib
import math

import pytest
import torch

from pyrl.weights.verify import WeightMismatch, check_logprobs, expected_checksums


def test_largest_difference_is_returned_and_bounded() -> None:
    assert check_logprobs([[-1.0, -2.0]], [[-1.25, -2.0]], tolerance=0.3, version=1) == 0.25
    with pytest.raises(WeightMismatch, match=r"version 4.*0\.5.*probe 1, token 2: learner -3\.000000, engine -2\.5"):
        check_logprobs([[-1.0], [-1.0, -2.5]], [[-1.1], [-1.0, -3.0]], tolerance=0.3, version=4)


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_what_is_not_finite_never_passes(position: int, bad: float) -> None:
    engine = [-1.0, -2.0, -3.0]
    engine[position] = bad
    with pytest.raises(WeightMismatch):
        check_logprobs([engine], [[-1.0, -2.0, -3.0]], tolerance=1e9, version=1)


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ValueError, match="no token to compare"):
        check_logprobs([[]], [[]], tolerance=1.0, version=1)


def test_checksums_fuse_as_vllm_does() -> None:
    torch.manual_seed(0)
    q, k, v, gate, up, norm = (torch.randn(n, 3) for n in (4, 2, 2, 5, 5, 1))
    prefix = "model.layers.0."
    named = {
        f"{prefix}self_attn.k_proj.weight": k, f"{prefix}self_attn.q_proj.weight": q,
        f"{prefix}self_attn.v_proj.weight": v, f"{prefix}mlp.up_proj.weight": up, f"{prefix}mlp.gate_proj.weight": gate,
        f"{prefix}input_layernorm.weight": norm,
    }  # fmt: skip

    def digest(*tensors: torch.Tensor) -> str:
        return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()

    assert expected_checksums(named.items(), torch.float32) == {
        f"{prefix}self_attn.qkv_proj.weight": digest(q, k, v),
        f"{prefix}mlp.gate_up_proj.weight": digest(gate, up),
        f"{prefix}input_layernorm.weight": digest(norm),
    }


def test_checksums_pad_the_vocabulary_as_vllm_does() -> None:
    table = torch.randn(70, 3)
    padded = torch.cat([table, torch.zeros(58, 3)])
    names = ("model.embed_tokens.weight", "lm_head.weight")
    expected = dict.fromkeys(names, hashlib.sha256(padded.numpy().tobytes()).hexdigest())
    assert expected_checksums(((name, table) for name in names), torch.float32) == expected


def test_a_rank_that_compares_nothing_still_reads_every_tensor() -> None:
    """Reading is a collective: the others would wait for it."""
    tensors = iter([("a", torch.ones(2)), ("b", torch.ones(2))])
    assert expected_checksums(tensors, torch.float32, wanted=False) == {}
    assert next(tensors, None) is None
