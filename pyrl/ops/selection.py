"""Exact selection of tokens over a data-parallel group without gathering them: the same set for any partition.

Every token has a key, a string of bytes. A round takes the next byte: the ranks add their histograms of it, all see in
which of the 256 bins the k-th key lies, tokens in bins before it are in, tokens in bins after it are out, and the next
round looks at that bin alone. A key is a 32-bit image of the covariance that keeps its order (KL-Cov only), then the
64-bit mix of (seed, token uid), which no two tokens share: ties go by it, and by it alone the band is drawn. Counts are
integers, so partition and order of reduction change nothing. At most 12 rounds of 1 KiB; one or two are usual where
keys are random, four where they are covariances.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
import torch.distributed as dist

from pyrl.ops import _check
from pyrl.ops.counter import as_int64, mix, mix_uids

_BINS = 256
_SALT_TOP = 0x746F70  # "top": select_top and select_band draw apart under one seed
_SALT_BAND = 0x62616E64  # "band"


def select_top(
    cov: torch.Tensor,
    mask: torch.Tensor,
    ratio: float,
    *,
    token_uids: torch.Tensor,
    seed: int = 0,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """The k tokens of largest covariance over `group` (KL-Cov, arXiv 2505.22617, eq. 13).

    k = min(candidates, max(1, floor(ratio n))): n counts `mask` over the group, candidates are those of them whose
    covariance is finite. `ratio n` is exact: the ratio is taken as the shortest decimal that names the float, so 0.29
    of 100 is 29 although the float 0.29 lies below it. Ratio 0 or n = 0 selects nothing. Equal covariances (-0 equals
    0) go by the mix of (seed, uid).

    Args:
        cov: fp32 [T]; T may differ between ranks and be 0.
        mask: bool [T]
        ratio: fraction in [0, 1], the same on every rank.
        token_uids: int64 [T], unique over the group where `mask` is true, and a token's own in every layout.
        seed: the same on every rank; `counter.derive_seed` makes one per step and mini-batch.
        group: data-parallel group, or None.

    Returns:
        bool [T]

    Raises:
        ValueError: a wrong shape, dtype or device; ratio outside [0, 1]; token uids that are not unique, where that
            decides who is selected.
    """
    _check_arguments(cov, mask, ratio, token_uids, seed)
    candidates = mask & cov.isfinite()
    # Largest first = smallest complement first.
    order = _descending_key(cov)
    return _select(order, candidates, mask, ratio, token_uids, mix(seed, _SALT_TOP), group)


def select_band(
    cov: torch.Tensor,
    mask: torch.Tensor,
    ratio: float,
    lower: float,
    upper: float,
    *,
    eligible: torch.Tensor | None = None,
    token_uids: torch.Tensor,
    seed: int = 0,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """k tokens drawn uniformly over `group` among those with lower < cov < upper and `eligible` (Clip-Cov, arXiv
    2505.22617, eq. 11).

    k, arguments, result and errors as in `select_top`; n counts `mask`, in the band or not. The draw takes the k
    smallest mixes of (seed, uid).

    Args:
        lower, upper: open band of covariance; infinities are allowed.
        eligible: bool [T], or None for all.

    Raises:
        ValueError: as in `select_top`, and lower >= upper or NaN.
    """
    _check_arguments(cov, mask, ratio, token_uids, seed)
    if not lower < upper:
        raise ValueError(f"lower, upper: got {lower!r}, {upper!r}, wanted lower < upper")
    exact = cov.double()  # a bound such as 0.1 is not rounded to fp32 before the comparison
    candidates = mask & cov.isfinite() & (exact > lower) & (exact < upper)
    if eligible is not None:
        _check.tensor("eligible", eligible, (torch.bool,), tuple(cov.shape), cov.device)
        candidates &= eligible
    return _select(None, candidates, mask, ratio, token_uids, mix(seed, _SALT_BAND), group)


def _check_arguments(cov: torch.Tensor, mask: torch.Tensor, ratio: float, token_uids: torch.Tensor, seed: int) -> None:
    _check.tensor("cov", cov, (torch.float32,), ("T",))
    _check.tensor("mask", mask, (torch.bool,), tuple(cov.shape), cov.device)
    _check.tensor("token_uids", token_uids, (torch.int64,), tuple(cov.shape), cov.device)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
        raise _check.wrong("ratio", ratio, "a fraction in [0, 1]")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise _check.wrong("seed", seed, "an int")


def quota(ratio: float, valid: int, candidates: int) -> int:
    """How many tokens to select: min(candidates, max(1, floor(ratio valid))), 0 for ratio 0 or no valid token.

    The ratio is the shortest decimal that names the float; the product is exact.
    """
    if ratio == 0 or valid == 0:
        return 0
    return min(candidates, max(1, math.floor(Fraction(repr(float(ratio))) * valid)))


def _descending_key(cov: torch.Tensor) -> torch.Tensor:
    """int64 [T] in [0, 2^32): smaller for a larger covariance; -0 equals 0."""
    bits = cov.detach().contiguous().view(torch.int32).long() & 0xFFFFFFFF
    bits = torch.where(bits == 0x80000000, 0, bits)
    ascending = torch.where(bits >> 31 == 1, ~bits & 0xFFFFFFFF, bits | 0x80000000)
    return 0xFFFFFFFF - ascending


def _select(
    order: torch.Tensor | None,
    candidates: torch.Tensor,
    mask: torch.Tensor,
    ratio: float,
    token_uids: torch.Tensor,
    seed: int,
    group: dist.ProcessGroup | None,
) -> torch.Tensor:
    """The k candidates that come first by (order, mix of seed and uid)."""
    selected = torch.zeros_like(mask)
    if ratio == 0:
        return selected
    counts = torch.stack((mask.sum(), candidates.sum()))
    n, total = _all_reduce(counts, group).tolist()
    if n >= 2**31:
        raise ValueError(f"mask: got {n} valid tokens over the group, wanted fewer than 2^31")
    k = quota(ratio, n, total)
    if k == total:
        return candidates
    words = [(order, 32)] if order is not None else []
    words.append((mix_uids(token_uids, as_int64(seed)), 64))
    active = candidates.nonzero().squeeze(1)  # the candidates whose key begins like the k-th
    for word, bits in words:
        for shift in range(bits - 8, -8, -8):
            digit = (word[active] >> shift) & (_BINS - 1)
            histogram = _all_reduce(torch.bincount(digit, minlength=_BINS).int(), group)
            before = histogram.cumsum(0)
            pivot = int((before < k).sum())  # the bin that holds the k-th key
            selected[active[digit < pivot]] = True
            active = active[digit == pivot]
            here = int(histogram[pivot])
            k -= int(before[pivot]) - here
            if k == here:
                selected[active] = True
                return selected
    raise ValueError(f"token_uids: got {here} tokens with the same uid, wanted uids that are unique over the group")


def _all_reduce(counts: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    if _check.group_size(group) > 1:
        dist.all_reduce(counts, group=group)
    return counts
