"""Covariance and selection on a CUDA device: the same bits as on the CPU, from a CUDA graph too, and nothing waits."""

from __future__ import annotations

import math

import pytest
import torch

from pyrl import ops
from pyrl.ops import counter, device_flag

pytestmark = pytest.mark.cuda

SIZES = [0, 1, 7, 257, 1024, 300_001]
"""None, one, a part of a warp, of a block, one block to the token, and many blocks with a tail."""


def make_tokens(size, *, rounded=True, seed=0):
    """(logprobs, advantages, mask, uids): ties, NaN, infinities and far exponents among them."""
    generator = torch.Generator().manual_seed(seed)
    logprobs, advantages = torch.randn(2, size, generator=generator) * 3
    if rounded:
        logprobs = logprobs.round(decimals=1)
    for value in (math.nan, math.inf, -math.inf, 3e38, -(2.0**-149)):
        logprobs[torch.rand(size, generator=generator) < 0.01] = value
        advantages[torch.rand(size, generator=generator) < 0.01] = value
    mask = torch.rand(size, generator=generator) < 0.8
    return logprobs, advantages, mask, torch.randperm(2**20, generator=generator)[:size] * 2**24


def run(logprobs, advantages, mask, uids):
    values = logprobs * advantages
    keywords = dict(token_uids=uids, seed=3)
    return (
        ops.token_covariance(logprobs, advantages, mask),
        ops.select_top(values, mask, 0.02, **keywords),
        ops.select_top(values, mask, 1.0, **keywords),
        ops.select_band(values, mask, 0.02, 0.5, 4, eligible=uids % 3 != 0, **keywords),
        ops.select_band(values, mask, 1e-9, -math.inf, math.inf, **keywords),
        counter.mix_uids(uids, -5),
    )


def same(got, want):
    if got.dtype == torch.float32:
        got, want = got.view(torch.int32), want.view(torch.int32)
    return torch.equal(got.cpu(), want.cpu())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rounded", [True, False])
def test_the_same_bits_as_on_the_cpu(size, rounded):
    tokens = make_tokens(size, rounded=rounded)
    wanted = run(*tokens)
    for _ in range(2):  # and the second time
        for got, want in zip(run(*(t.cuda() for t in tokens)), wanted, strict=True):
            assert same(got, want)


def test_strided_input():
    tokens = [t.cuda() for t in make_tokens(2000)]
    for got, want in zip(run(*(t[::2] for t in tokens)), run(*(t[::2].contiguous() for t in tokens)), strict=True):
        assert same(got, want)


def test_a_graph_replays_on_new_tokens_and_nothing_waits():
    static = [t.cuda() for t in make_tokens(5000)]
    run(*static)  # the flag and the kernels exist before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # a wait would end the capture with an error
        results = run(*static)
    for seed in (1, 2):
        tokens = make_tokens(5000, seed=seed)
        for buffer, values in zip(static, tokens, strict=True):
            buffer.copy_(values)
        graph.replay()
        for got, want in zip(results, run(*tokens), strict=True):
            assert same(got, want)


def test_the_same_uid_sets_the_flag():
    device = torch.device("cuda", torch.cuda.current_device())
    device_flag.take_errors(device)
    cov, mask, uids = torch.ones(10).cuda(), torch.ones(10, dtype=torch.bool).cuda(), torch.zeros(10).long().cuda()
    ops.select_top(cov, mask, 1.0, token_uids=uids)
    assert device_flag.take_errors(device) == []  # it decides nothing: all are selected
    ops.select_top(cov, mask, 0.3, token_uids=uids)
    (message,) = device_flag.take_errors(device)
    assert message.startswith("token_uids: got tokens with the same uid")
    assert device_flag.take_errors(device) == []
