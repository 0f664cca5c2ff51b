"""`select_top` and `select_band` against a sort of everything, and the same set for any partition over ranks."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
import torch
import torch.distributed as dist
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from pyrl import ops
from pyrl.ops import device_flag, reference, selection
from pyrl.ops.reference import quota
from tests.ops.gloo import run_on_ranks
from tests.ops.simulated_ranks import SimulatedGroup

# Few distinct values make ties; both zeros, neighbours, subnormals and what is never selected are among them.
COVARIANCES = st.one_of(
    st.sampled_from(
        [0.0, -0.0, 1.0, 1.0 + 2.0**-23, -1.0, 5.0, 2.0**-149, -(2.0**-149), 3e38, math.nan, math.inf, -math.inf]
    ),
    st.floats(-8, 8, width=32),
)
TOKENS = st.lists(st.tuples(COVARIANCES, st.booleans()), max_size=60)
RATIOS = st.one_of(st.sampled_from([0.0, 1.0, 0.1, 2e-4]), st.floats(0, 1))


def tensors(tokens, first_uid=0):
    cov = torch.tensor([t[0] for t in tokens], dtype=torch.float32)
    mask = torch.tensor([t[1] for t in tokens], dtype=torch.bool)
    return cov, mask, torch.arange(first_uid, first_uid + len(tokens)) * 2**24


def brute_top(cov, mask, ratio, uids, seed):
    candidates = int((mask & cov.isfinite()).sum())
    k = quota(ratio, int(mask.sum()), candidates)
    return reference.select_top(cov.tolist(), mask.tolist(), k, uids.tolist(), seed)


def brute_band(cov, mask, ratio, lower, upper, uids, seed, eligible=None):
    usable = mask if eligible is None else mask & eligible
    inside = reference.select_band(cov.tolist(), usable.tolist(), len(cov), lower, upper, uids.tolist(), seed)
    k = quota(ratio, int(mask.sum()), len(inside))
    return reference.select_band(cov.tolist(), usable.tolist(), k, lower, upper, uids.tolist(), seed)


def indices(selected):
    return set(selected.nonzero().squeeze(1).tolist())


@given(TOKENS, RATIOS, st.integers(0, 2**63 - 1))
@settings(max_examples=300, deadline=None)
def test_top_is_the_sort(tokens, ratio, seed):
    cov, mask, uids = tensors(tokens)
    got = ops.select_top(cov, mask, ratio, token_uids=uids, seed=seed)
    assert got.dtype == torch.bool and got.shape == cov.shape
    assert indices(got) == brute_top(cov, mask, ratio, uids, seed)


@given(
    TOKENS, RATIOS, st.sampled_from([(1.0, 5.0), (-1.0, 1.0), (-math.inf, math.inf), (0.1, 0.2)]), st.integers(0, 99)
)
@settings(max_examples=300, deadline=None)
def test_band_is_the_sort(tokens, ratio, band, seed):
    cov, mask, uids = tensors(tokens)
    eligible = uids % 3 != 0
    for allowed in (None, eligible):
        got = ops.select_band(cov, mask, ratio, *band, eligible=allowed, token_uids=uids, seed=seed)
        assert indices(got) == brute_band(cov, mask, ratio, *band, uids, seed, allowed)


def test_top_takes_the_values_of_torch_topk():
    """Independent of the reference's mix: the multiset of values is what a plain top-k gives."""
    cov = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).round(decimals=2)
    got = ops.select_top(cov, torch.ones(10_000, dtype=torch.bool), 0.03, token_uids=torch.arange(10_000))
    assert torch.equal(cov[got].sort().values, cov.topk(300).values.sort().values)


@pytest.mark.parametrize(
    ("ratio", "valid", "candidates", "k"),
    [
        (0.0, 100, 100, 0),
        (0.5, 0, 0, 0),
        (2e-4, 1, 1, 1),  # never less than one token
        (2e-4, 8192, 8192, 1),
        (2e-4, 10_000, 10_000, 2),
        (2e-4, 14_999, 14_999, 2),
        (0.29, 100, 100, 29),  # 0.29 * 100 is 28.999... in floating point
        (0.1, 30, 30, 3),
        (0.7, 10, 10, 7),  # 0.7 * 10 is 7.0, int(0.7 * 10) too; 0.57 * 100 is 56.999...
        (0.57, 100, 100, 57),
        (0.999, 1000, 1000, 999),
        (1.0, 7, 7, 7),
        (0.5, 10, 3, 3),  # no more than there are
        (0.5, 10, 0, 0),
    ],
)
def test_quota(ratio, valid, candidates, k):
    assert quota(ratio, valid, candidates) == k


@given(RATIOS.filter(bool), st.integers(0, 2**31 - 1))
@example(0.29, 100)
@example(1 - 2.0**-53, 2**31 - 1)
@example(math.nextafter(0.5, 0), 2)
@example(math.nextafter(1 / 3, 1), 2**31 - 1)
@example(5e-324, 2**31 - 1)
@settings(max_examples=300, deadline=None)
def test_the_device_s_quota_is_exact(ratio, n):
    """Against rationals, at n and where the fraction the device computes with comes closest to the ratio."""
    exact = Fraction(repr(ratio))
    share = selection.exact_fraction(ratio)
    largest = 2**31 - 1
    assert share <= exact and share.denominator <= largest
    counts = torch.zeros(258, dtype=torch.int32)
    counts[255] = largest  # all candidates in the last bin, so that none of the k lies before it
    for tokens in {n, share.denominator, largest // share.denominator * share.denominator, largest}:
        counts[256], counts[257] = tokens & 255, tokens >> 8
        state = torch.zeros(7, dtype=torch.int64)
        torch.ops.pyrl.selection_advance(counts, True, 0, *share.as_integer_ratio(), state)
        assert state[2] == max(1, math.floor(exact * tokens))


def test_n_counts_the_mask_and_not_the_candidates():
    cov = torch.full((100,), torch.nan)
    cov[:10] = torch.arange(10.0)
    mask = torch.ones(100, dtype=torch.bool)
    uids = torch.arange(100)
    assert indices(ops.select_top(cov, mask, 0.05, token_uids=uids)) == {5, 6, 7, 8, 9}
    assert ops.select_band(cov, mask, 0.05, 0, 9, token_uids=uids).sum() == 5


def test_nan_and_infinity_are_never_selected():
    cov = torch.tensor([torch.inf, torch.nan, -torch.inf, -5.0])
    mask, uids = torch.ones(4, dtype=torch.bool), torch.arange(4)
    assert indices(ops.select_top(cov, mask, 1.0, token_uids=uids)) == {3}
    assert indices(ops.select_band(cov, mask, 1.0, -math.inf, math.inf, token_uids=uids)) == {3}


def test_the_band_is_open():
    cov = torch.tensor([1.0, 1 + 2.0**-23, 3.0, 5 - 2.0**-21, 5.0])
    got = ops.select_band(cov, torch.ones(5, dtype=torch.bool), 1.0, 1, 5, token_uids=torch.arange(5))
    assert indices(got) == {1, 2, 3}


def test_a_bound_is_not_rounded_to_fp32():
    """0.1 is not an fp32 number: the nearest one, 0.1f, lies above it, and 0.2f above 0.2, -0.1f below -0.1."""
    tenth, fifth = torch.tensor(0.1), torch.tensor(0.2)
    steps = [-math.inf, math.inf]
    cov = torch.stack([torch.nextafter(x, torch.tensor(to)) for x in (tenth, fifth) for to in steps] + [tenth, fifth])
    cov = torch.cat([cov, -cov])
    mask, uids = torch.ones(12, dtype=torch.bool), torch.arange(12)
    for lower, upper in ((0.1, 0.2), (-0.2, -0.1), (0.1, 1e300), (-1e300, -0.1)):
        want = {i for i, c in enumerate(cov.tolist()) if lower < c < upper}
        assert want
        assert indices(ops.select_band(cov, mask, 1.0, lower, upper, token_uids=uids)) == want
    assert ops.select_band(cov, mask, 1.0, 1e299, 1e300, token_uids=uids).sum() == 0


def test_ties_go_by_uid_and_seed_not_by_position():
    cov, mask, uids = torch.ones(1000), torch.ones(1000, dtype=torch.bool), torch.arange(1000)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    for select in (ops.select_top, lambda *a, **k: ops.select_band(*a, 0, 2, **k)):
        plain = select(cov, mask, 0.1, token_uids=uids, seed=1)
        shuffled = select(cov, mask, 0.1, token_uids=uids[order], seed=1)
        assert plain.sum() == 100 and torch.equal(shuffled, plain[order])
        assert not torch.equal(select(cov, mask, 0.1, token_uids=uids, seed=2), plain)


def test_the_draw_from_the_band_is_uniform():
    """Each of 200 tokens, drawn 20 at a time over 2000 seeds: 200 times each, standard deviation 13.4."""
    cov, mask, uids = torch.linspace(1.1, 4.9, 200), torch.ones(200, dtype=torch.bool), torch.arange(200)
    counts = sum(ops.select_band(cov, mask, 0.1, 1, 5, token_uids=uids, seed=s).int() for s in range(2000))
    assert counts.sum() == 40_000
    chi_square = ((counts - 200.0) ** 2 / (200 * 0.9)).sum().item()
    assert 199 - 5 * math.sqrt(2 * 199) < chi_square < 199 + 5 * math.sqrt(2 * 199)


def test_uids_that_are_not_unique_are_an_error_where_they_decide():
    cov, mask = torch.ones(10), torch.ones(10, dtype=torch.bool)
    with pytest.raises(ValueError, match="token_uids: got 10 tokens with the same uid"):
        ops.select_top(cov, mask, 0.3, token_uids=torch.zeros(10, dtype=torch.int64))


def test_2_to_the_31_tokens_are_an_error(monkeypatch):
    """A group whose other ranks hold 2^31 - 4 tokens, none of them a candidate."""

    def add_the_others(counts, group):
        counts[256:] += torch.tensor([252, 2**23 - 1], dtype=torch.int32)

    monkeypatch.setattr(dist, "all_reduce", add_the_others)
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    cov, uids = torch.arange(4.0), torch.arange(4)
    assert ops.select_top(cov, cov > 0, 1e-9, token_uids=uids, group="others").tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match="mask: got 2147483648 valid tokens over the group"):
        ops.select_top(cov, cov >= 0, 1e-9, token_uids=uids, group="others")


@pytest.mark.parametrize("ranked", [True, False])
def test_opcheck(ranked):
    cov, mask, uids = torch.randn(9), torch.rand(9) < 0.8, torch.arange(9)
    for eligible in (None, ~mask):
        tokens = (cov, mask, eligible, uids, -1.0, math.inf, ranked, 5)
        counts, state = torch.zeros(258, dtype=torch.int32), torch.zeros(7, dtype=torch.int64)
        torch.library.opcheck(torch.ops.pyrl.selection_histogram, (*tokens, 4, state, counts))
        torch.library.opcheck(torch.ops.pyrl.selection_mark, (*tokens, state))
        torch.library.opcheck(torch.ops.pyrl.selection_mark_or_raise, (*tokens, state))
    torch.library.opcheck(torch.ops.pyrl.selection_advance, (counts, ranked, 4, 1, 3, state))


def test_nothing_waits_for_a_device(monkeypatch):
    """Fake CUDA tensors have no values: reading one, or a shape that depends on one, is an error."""
    monkeypatch.setattr(device_flag, "_FLAGS", {})
    with FakeTensorMode():
        cov, mask, uids = (torch.empty(9, dtype=d, device="cuda") for d in (torch.float32, torch.bool, torch.int64))
        for got in (
            ops.select_top(cov, mask, 0.1, token_uids=uids),
            ops.select_band(cov, mask, 0.1, 1, 5, eligible=mask, token_uids=uids),
        ):
            assert got.shape == (9,) and got.dtype == torch.bool and got.device.type == "cuda"
        covariance = ops.token_covariance(cov, cov, mask)
        assert covariance.shape == (9,) and covariance.dtype == torch.float32


def test_compiles_to_one_graph():
    cov, mask, uids = torch.randn(50), torch.rand(50) < 0.8, torch.arange(50)

    def both(cov, mask, uids):
        covariance = ops.token_covariance(cov, cov, mask)
        return covariance, ops.select_top(covariance, mask, 0.2, token_uids=uids), ops.select_band(
            covariance, mask, 0.2, 0, 3, token_uids=uids
        )  # fmt: skip

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(cov, mask, uids), both(cov, mask, uids), strict=True):
        assert torch.equal(got, want)
    with pytest.raises(ValueError, match="same uid"):
        compiled(cov, mask, torch.zeros_like(uids))


C, M, U = torch.zeros(3), torch.ones(3, dtype=torch.bool), torch.arange(3)
BAD_ARGUMENTS = {
    "cov fp64": (dict(cov=C.double()), "cov: got torch.float64"),
    "mask int": (dict(mask=M.int()), "mask: got torch.int32"),
    "mask length": (dict(mask=M[:2]), r"mask: got torch.bool \[2\]"),
    "uids length": (dict(token_uids=U[:1]), r"token_uids: got torch.int64 \[1\]"),
    "uids int32": (dict(token_uids=U.int()), "token_uids: got torch.int32"),
    "ratio above 1": (dict(ratio=1.5), r"ratio: got float 1.5, wanted a fraction in \[0, 1\]"),
    "ratio negative": (dict(ratio=-0.1), "ratio: got float -0.1"),
    "ratio nan": (dict(ratio=math.nan), "ratio: got float nan"),
    "seed float": (dict(seed=1.0), "seed: got float 1.0"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_named(case):
    changed, message = BAD_ARGUMENTS[case]
    arguments = dict(cov=C, mask=M, ratio=0.5, token_uids=U, seed=0) | changed
    positional = [arguments.pop(name) for name in ("cov", "mask", "ratio")]
    with pytest.raises(ValueError, match=message):
        ops.select_top(*positional, **arguments)
    with pytest.raises(ValueError, match=message):
        ops.select_band(*positional, 1.0, 5.0, **arguments)


def test_bad_bands_are_named():
    for lower, upper in ((5, 1), (1, 1), (math.nan, 1), (1, math.nan)):
        with pytest.raises(ValueError, match="lower, upper: got"):
            ops.select_band(C, M, 0.5, lower, upper, token_uids=U)
    with pytest.raises(ValueError, match=r"eligible: got torch.bool \[2\]"):
        ops.select_band(C, M, 0.5, 1, 5, eligible=M[:2], token_uids=U)


def random_partition(tokens, ranks, choice):
    """Indices of each rank's tokens: micro-batches of random sizes, dealt to random ranks, some of which get none."""
    order = list(range(tokens))
    if choice.random() < 0.5:
        choice.shuffle(order)
    cuts = sorted(choice.randint(0, tokens) for _ in range(choice.randint(0, 3 * ranks)))
    users = choice.sample(range(ranks), choice.randint(1, ranks))
    parts = [[] for _ in range(ranks)]
    for begin, end in zip([0, *cuts], [*cuts, tokens], strict=True):
        parts[choice.choice(users)] += order[begin:end]
    return [torch.tensor(part, dtype=torch.int64) for part in parts]


def test_200_partitions_select_the_same_tokens():
    """The same 500 tokens, with ties, NaN and infinity, over 1, 2, 3 and 8 ranks, empty ones included."""
    generator = torch.Generator().manual_seed(0)
    logprobs, advantages = torch.randn(2, 500, generator=generator).mul(3).round(decimals=1)
    logprobs[torch.rand(500, generator=generator) < 0.05] = torch.nan
    advantages[torch.rand(500, generator=generator) < 0.05] = 3e38
    mask = torch.rand(500, generator=generator) < 0.8
    uids = torch.randperm(2**20, generator=generator)[:500] * 2**24
    values = logprobs * advantages  # NaN, infinities and many ties; the means would set ties apart
    covariance = ops.token_covariance(logprobs, advantages, mask)
    choice, sizes = random.Random(0), []
    for case in range(200):
        ranks, ratio = (1, 2, 3, 8)[case % 4], (2e-3, 0.05, 0.9, 1.0)[case // 4 % 4]
        want_top = brute_top(values, mask, ratio, uids, case)
        want_band = brute_band(values, mask, ratio, 0.5, 4, uids, case)
        assert 0 < len(want_top) <= 400 and 0 < len(want_band) < 200

        def select(index, group, ratio=ratio, case=case):
            keywords = dict(token_uids=uids[index], seed=case, group=group)
            return (
                ops.select_top(values[index], mask[index], ratio, **keywords),
                ops.select_band(values[index], mask[index], ratio, 0.5, 4, **keywords),
                ops.token_covariance(logprobs[index], advantages[index], mask[index], group=group),
            )

        parts = random_partition(500, ranks, choice)
        sizes += [len(part) for part in parts]
        results = SimulatedGroup(ranks).run(select, [(part,) for part in parts])
        top, band, covariances = (torch.cat(pieces) for pieces in zip(*results, strict=True))
        order = torch.cat(parts)
        assert set(order[top].tolist()) == want_top
        assert set(order[band].tolist()) == want_band
        assert torch.equal(covariances.nan_to_num(7e37), covariance[order].nan_to_num(7e37))
    assert 0 in sizes and 500 in sizes


def make_problems():
    """Random batches; many ties, NaN and infinity among them; ratios that take one token, some, and nearly all."""
    generator = torch.Generator().manual_seed(0)
    problems = []
    for tokens in (0, 1, 5, 300, 2000):
        for ratio in (0.0, 2e-4, 0.03, 0.9):
            cov = (torch.randn(tokens, generator=generator) * 3).round(decimals=1)
            cov[torch.rand(tokens, generator=generator) < 0.05] = torch.nan
            cov[torch.rand(tokens, generator=generator) < 0.05] = torch.inf
            mask = torch.rand(tokens, generator=generator) < 0.8
            uids = torch.randperm(2**20, generator=generator)[:tokens]
            problems.append((cov, mask, ratio, uids, tokens + 7))
    return problems


def cut(tokens, ranks, choice):
    """Bounds of a random partition into `ranks` pieces; every other time with empty ones."""
    points = sorted(choice.choice([0, tokens]) if choice.random() < 0.5 else choice.randint(0, tokens)
                    for _ in range(ranks - 1))  # fmt: skip
    return [0, *points, tokens]


def on_each_rank(problems):
    """[problem][group size]: (this rank's piece of both selections, bytes sent), None outside the group."""
    groups = {1: dist.new_group([0]), 2: dist.new_group([0, 1]), 3: dist.group.WORLD}
    sent = []
    all_reduce = dist.all_reduce

    def recorded(tensor, **kwargs):
        sent.append(tensor.nbytes)
        return all_reduce(tensor, **kwargs)

    dist.all_reduce = recorded
    choice = random.Random(0)  # the same cuts on every rank
    results = []
    for cov, mask, ratio, uids, seed in problems:
        row = {}
        for size, group in groups.items():
            bounds = cut(len(cov), size, choice)
            if dist.get_rank() >= size:
                continue
            here = slice(bounds[dist.get_rank()], bounds[dist.get_rank() + 1])
            keywords = dict(token_uids=uids[here], seed=seed, group=group)
            sent.clear()
            top = ops.select_top(cov[here], mask[here], ratio, **keywords)
            top_bytes = sum(sent)
            sent.clear()
            band = ops.select_band(cov[here], mask[here], ratio, 0.5, 4, **keywords)
            row[size] = top, band, top_bytes, sum(sent)
        results.append(row)
    return results


def test_any_partition_over_ranks_selects_the_same_tokens():
    problems = make_problems()
    ranks = run_on_ranks(3, on_each_rank, problems)
    most_sent = 0
    for index, (cov, mask, ratio, uids, seed) in enumerate(problems):
        want_top = brute_top(cov, mask, ratio, uids, seed)
        want_band = brute_band(cov, mask, ratio, 0.5, 4, uids, seed)
        for size in (1, 2, 3):
            pieces = [ranks[rank][index][size] for rank in range(size)]
            assert indices(torch.cat([piece[0] for piece in pieces])) == want_top
            assert indices(torch.cat([piece[1] for piece in pieces])) == want_band
            most_sent = max(most_sent, *(max(piece[2:]) for piece in pieces))
    assert 0 < most_sent <= 16 * 1024
