"""Counter-based randomness: what is drawn depends on (run seed, step, mini-batch, purpose, token uid) alone, never on
rank, order or device. `mix` is csrc/counter/counter.h written in Python; `mix_uids` is the compiled one."""

from __future__ import annotations

import hashlib

import torch

from pyrl.ops import _check, _library  # noqa: F401  (loading the library defines torch.ops.pyrl)

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 / golden ratio, odd."""
_OTHER = 0xD1B54A32D192ED03
"""Odd, far from golden: with one constant for both arguments, `mix` would be symmetric."""


def mix64(x: int) -> int:
    """SplitMix64's output function (Stafford's variant 13): a bijection of [0, 2^64)."""
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def mix(seed: int, uid: int) -> int:
    """64 random bits for `uid` under `seed`, both taken modulo 2^64; for a fixed seed a bijection of uid."""
    return mix64(mix64(uid + _GOLDEN) ^ mix64(seed + _OTHER))


def derive_seed(seed: int, *, step: int, mini_batch: int, purpose: str) -> int:
    """The seed in [0, 2^63) of one purpose ("select_top", "sampling", ...) at one step and mini-batch of a run."""
    name = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    return mix(mix(mix(seed, step), mini_batch), name) >> 1


def mix_uids(uids: torch.Tensor, seed: int) -> torch.Tensor:
    """int64 [T] -> int64 [T]: the bits of `mix(seed, uid)`, to be read as unsigned."""
    _check.tensor("uids", uids, (torch.int64,), ("T",))
    return torch.ops.pyrl.mix_uids(uids, as_int64(seed))


def as_int64(x: int) -> int:
    """The signed number with the low 64 bits of `x`."""
    x &= _MASK
    return x - (1 << 64) if x >> 63 else x


@torch.library.register_fake("pyrl::mix_uids")
def _(uids, seed):
    return uids.new_empty(uids.shape)
