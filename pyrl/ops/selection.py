"""Exact selection of tokens over a data-parallel group without gathering them: the same set for any partition.

Every token has a key, a string of bytes. A round takes the next byte: the ranks add their histograms of it, all see in
which of the 256 bins the k-th key lies, and the next round looks at that bin alone. A key is a 32-bit image of the
covariance that keeps its order (KL-Cov only), then the 64-bit mix of (seed, token uid), which no two tokens share: ties
go by it, and by it alone the band is drawn. Counts are integers, so partition and order of reduction change nothing.
12 rounds of 1032 bytes, 8 for the band; what they find stays on the device. Formulas: csrc/selection.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
import torch.distributed as dist

from pyrl.ops import _check, _library  # noqa: F401  (loading the library defines torch.ops.pyrl)
from pyrl.ops.counter import as_int64, mix
from pyrl.ops.device_flag import ValueErrors, device_flag

# Equal to the constants of csrc/selection/key.h.
_ROUNDS = 12
_ORDER_ROUNDS = 4
_COUNTS = 258
_STATE_WORDS = 7
_VALID, _SAME_UID, _ERRORS = 4, 5, 6
_MAX_VALID = 2**31 - 1

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
        ValueError: a wrong shape, dtype or device; ratio outside [0, 1]. Token uids that are not unique, where that
            decides who is selected, or 2^31 valid tokens: on CUDA, where nothing waits for the device, these two set
            its flag instead (`pyrl.ops.device_flag`).
    """
    _check_arguments(cov, mask, ratio, token_uids, seed)
    return _select(cov, mask, None, token_uids, ratio, -math.inf, math.inf, True, mix(seed, _SALT_TOP), group)


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
    if eligible is not None:
        _check.tensor("eligible", eligible, (torch.bool,), tuple(cov.shape), cov.device)
    return _select(cov, mask, eligible, token_uids, ratio, lower, upper, False, mix(seed, _SALT_BAND), group)


def _check_arguments(cov: torch.Tensor, mask: torch.Tensor, ratio: float, token_uids: torch.Tensor, seed: int) -> None:
    _check.tensor("cov", cov, (torch.float32,), ("T",))
    _check.tensor("mask", mask, (torch.bool,), tuple(cov.shape), cov.device)
    _check.tensor("token_uids", token_uids, (torch.int64,), tuple(cov.shape), cov.device)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
        raise _check.wrong("ratio", ratio, "a fraction in [0, 1]")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise _check.wrong("seed", seed, "an int")


def _select(
    cov: torch.Tensor,
    mask: torch.Tensor,
    eligible: torch.Tensor | None,
    token_uids: torch.Tensor,
    ratio: float,
    lower: float,
    upper: float,
    by_covariance: bool,
    seed: int,
    group: dist.ProcessGroup | None,
) -> torch.Tensor:
    """The k candidates that come first by (covariance, if `by_covariance`; mix of seed and uid)."""
    if ratio == 0:
        return torch.zeros_like(mask)
    tokens = cov.detach(), mask, eligible, token_uids, float(lower), float(upper), by_covariance, as_int64(seed)
    share = exact_fraction(ratio).as_integer_ratio()
    first = 0 if by_covariance else _ORDER_ROUNDS
    state = token_uids.new_zeros(_STATE_WORDS)
    counts = token_uids.new_zeros((_ROUNDS - first, _COUNTS), dtype=torch.int32)
    for digit, digit_counts in enumerate(counts.unbind(), first):
        torch.ops.pyrl.selection_histogram(*tokens, digit, state, digit_counts)
        if _check.group_size(group) > 1:
            dist.all_reduce(digit_counts, group=group)
        torch.ops.pyrl.selection_advance(digit_counts, by_covariance, digit, *share, state)
    if not state.is_cuda:
        return torch.ops.pyrl.selection_mark_or_raise(*tokens, state)
    device_flag(state.device).bitwise_or_(state.narrow(0, _ERRORS, 1))
    return torch.ops.pyrl.selection_mark(*tokens, state)


def exact_fraction(ratio: float) -> Fraction:
    """The fraction with which floor(n ratio) is exact for every n < 2^31 in 64-bit integers.

    The ratio is the shortest decimal that names the float, which may have too many digits; of the fractions whose
    denominator is below 2^31 this is the largest that is not above it. For an integer m and n < 2^31, m <= n ratio says
    that m / n, one of those fractions, is not above the ratio, hence not above the largest: both have the same floors.
    """
    exact = Fraction(repr(float(ratio)))
    nearest = exact.limit_denominator(_MAX_VALID)
    if nearest <= exact:
        return nearest
    # Its left neighbour p / q in the Farey sequence: numerator q - p denominator = 1, and q as large as may be.
    numerator, denominator = nearest.as_integer_ratio()
    q = _MAX_VALID - (_MAX_VALID - pow(numerator, -1, denominator)) % denominator
    return Fraction((numerator * q - 1) // denominator, q)


@torch.library.custom_op("pyrl::selection_mark_or_raise", mutates_args=(), device_types="cpu")
def _mark_or_raise(
    cov: torch.Tensor,
    mask: torch.Tensor,
    eligible: torch.Tensor | None,
    token_uids: torch.Tensor,
    lower: float,
    upper: float,
    by_covariance: bool,
    seed: int,
    state: torch.Tensor,
) -> torch.Tensor:
    """`selection_mark` where the search met no error of values. An op of its own, for a compiled graph holds an op that
    raises but no branch on a value."""
    valid, same_uid, errors = (int(state[word]) for word in (_VALID, _SAME_UID, _ERRORS))
    if errors & ValueErrors.TOO_MANY_TOKENS:
        raise ValueError(f"mask: got {valid} valid tokens over the group, wanted fewer than 2^31")
    if errors & ValueErrors.SAME_UID:
        raise ValueError(
            f"token_uids: got {same_uid} tokens with the same uid, wanted uids that are unique over the group"
        )
    return torch.ops.pyrl.selection_mark(cov, mask, eligible, token_uids, lower, upper, by_covariance, seed, state)


@_mark_or_raise.register_fake
def _(cov, mask, eligible, token_uids, lower, upper, by_covariance, seed, state):
    return mask.new_empty(mask.shape)


@torch.library.register_fake("pyrl::selection_histogram")
def _(cov, mask, eligible, token_uids, lower, upper, by_covariance, seed, round, state, counts):
    return None


@torch.library.register_fake("pyrl::selection_advance")
def _(counts, by_covariance, round, numerator, denominator, state):
    return None


@torch.library.register_fake("pyrl::selection_mark")
def _(cov, mask, eligible, token_uids, lower, upper, by_covariance, seed, state):
    return mask.new_empty(mask.shape)
