"""The counter-based mix: known values, and C++ and CUDA equal to Python."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrl.ops import counter

INT64 = st.integers(-(2**63), 2**63 - 1)


def test_known_values():
    """The first outputs of SplitMix64 from state 0: its k-th is mix64(k golden)."""
    golden = 0x9E3779B97F4A7C15
    outputs = [counter.mix64(k * golden) for k in (1, 2, 3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(uids=st.lists(INT64, max_size=20), seed=INT64)
def test_cpp_equals_python(device, uids, seed):
    got = counter.mix_uids(torch.tensor(uids, dtype=torch.int64, device=device), seed).tolist()
    assert got == [counter.as_int64(counter.mix(seed, uid)) for uid in uids]


def test_strided_uids(device):
    uids = torch.arange(20, device=device)
    assert torch.equal(counter.mix_uids(uids[::2], 3), counter.mix_uids(uids, 3)[::2])


def test_no_two_uids_share_a_value_and_bits_are_even():
    values = counter.mix_uids(torch.arange(100_000), 7)
    assert values.unique().numel() == 100_000
    for bit in range(64):  # binomial, 100000 draws: standard deviation 158
        assert abs(int(((values >> bit) & 1).sum()) - 50_000) < 5 * 158


def test_seeds_of_purposes_differ():
    seeds = {
        counter.derive_seed(seed, step=step, mini_batch=mini_batch, purpose=purpose)
        for seed in range(3)
        for step in range(3)
        for mini_batch in range(3)
        for purpose in ("select", "sample")
    }
    assert len(seeds) == 54 and all(0 <= seed < 2**63 for seed in seeds)


def test_derived_seed_is_fixed():
    """A resumed run of a later version must draw the same: change it only on purpose."""
    assert counter.derive_seed(1, step=2, mini_batch=3, purpose="select") == FIXED


FIXED = 7410751088277867128
