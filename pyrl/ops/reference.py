"""The ops in plain torch and plain Python, in float64, written to be read: what the compiled ones are compared with."""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from pyrl.ops.counter import mix
from pyrl.ops.selection import _SALT_BAND, _SALT_TOP


def logprob_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    vocab_size: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`pyrl.ops.logprob_entropy` on the whole vocabulary by log-softmax in `dtype`, differentiable by autograd.

    With `dtype` that of the logits it is "the same computation in PyTorch".
    """
    valid = labels != -100
    x = logits[:, : vocab_size or logits.shape[1]].to(dtype)
    scale = temperature.to(dtype)[:, None] if isinstance(temperature, torch.Tensor) else temperature
    log_p = torch.log_softmax(x / scale, dim=-1)
    logprobs = log_p.gather(1, labels.clamp(min=0)[:, None]).squeeze(1)
    # p ln p is 0 where p is 0, and so is its gradient.
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -math.inf, 0.0)).sum(-1)
    zero = torch.zeros((), dtype=dtype)
    return torch.where(valid, logprobs, zero), torch.where(valid, entropy, zero)


def token_covariance(logprobs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`pyrl.ops.token_covariance` in float64, means by `math.fsum` (exact, rounded once)."""
    x, y = logprobs.double(), advantages.double()
    finite = x.isfinite() & y.isfinite()
    used = finite & mask
    count = max(1, int(used.sum()))
    covariance = (x - math.fsum(x[used].tolist()) / count) * (y - math.fsum(y[used].tolist()) / count)
    covariance = torch.where(finite, covariance, torch.nan)
    return torch.where(mask, covariance, 0.0)


def quota(ratio: float, valid: int, candidates: int) -> int:
    """How many tokens to select: min(candidates, max(1, floor(ratio valid))), 0 for ratio 0 or no valid token.

    The ratio is the shortest decimal that names the float; the product is exact.
    """
    if ratio == 0 or valid == 0:
        return 0
    return min(candidates, max(1, math.floor(Fraction(repr(float(ratio))) * valid)))


def select_top(cov: list[float], mask: list[bool], k: int, token_uids: list[int], seed: int = 0) -> set[int]:
    """Indices of the k largest finite covariances, ties by the smaller mix: a sort of everything."""
    candidates = [i for i, c in enumerate(cov) if mask[i] and math.isfinite(c)]
    salted = mix(seed, _SALT_TOP)
    return set(sorted(candidates, key=lambda i: (-cov[i], mix(salted, token_uids[i])))[:k])


def select_band(
    cov: list[float], mask: list[bool], k: int, lower: float, upper: float, token_uids: list[int], seed: int = 0
) -> set[int]:
    """Indices of the k smallest mixes among finite covariances in the open band: a sort of everything."""
    candidates = [i for i, c in enumerate(cov) if mask[i] and math.isfinite(c) and lower < c < upper]
    salted = mix(seed, _SALT_BAND)
    return set(sorted(candidates, key=lambda i: mix(salted, token_uids[i]))[:k])


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    clip_ratio_low: float | None = None,
    clip_ratio_high: float | None = None,
    clip_ratio_c: float | None = None,
    selected: torch.Tensor | None = None,
    kl_cov_coef: float | None = None,
) -> torch.Tensor:
    """The loss of `pyrl.ops.policy_loss` in float64, token by token as the papers write it, differentiable by autograd.

    It has the two rules of the op that are not the papers': r is 1 where there is no old log-prob, and the penalty of a
    |d| below 1e-6 has no gradient.
    """
    losses = []
    for t in range(len(mask)):
        if not mask[t]:
            losses.append(torch.zeros((), dtype=torch.float64))
            continue
        new, advantage = logprobs[t].double(), advantages[t].detach().double()
        d = new - (new.detach() if old_logprobs is None else old_logprobs[t].detach().double())
        ratio = d.exp()
        low = 0.0 if clip_ratio_low is None else 1.0 - clip_ratio_low
        high = math.inf if clip_ratio_high is None else 1.0 + clip_ratio_high
        loss = torch.maximum(-ratio * advantage, -ratio.clamp(low, high) * advantage)
        if clip_ratio_c is not None and advantage < 0:
            loss = torch.minimum(loss, -clip_ratio_c * advantage)
        if selected is not None and selected[t]:
            penalty = d.abs() if d.abs() >= 1e-6 else d.abs().detach()
            loss = torch.zeros((), dtype=torch.float64) if kl_cov_coef is None else loss + kl_cov_coef * penalty
        losses.append(loss)
    return torch.stack(losses) if losses else torch.zeros(0, dtype=torch.float64)
