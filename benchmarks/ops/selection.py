"""Covariance of tokens and the selection among them, over the tokens of a whole batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from benchmarks import ceiling
from benchmarks.case import Case, Ceiling, Contender
from pyrl.ops import select_band, select_top, token_covariance

_TOKENS = 3_000_000
_RATIO = 2e-4
_BAND = (1.0, 5.0)
_BYTES = 9 + 4 + 5 + 1  # a token: log-prob, advantage, mask; its covariance; that and the mask again; the selection


def cases(device: torch.device, scale: float) -> Iterator[Case]:
    tokens = max(64, int(_TOKENS * scale))
    logprobs = -torch.rand(tokens, device=device) * 5
    advantages = torch.randn(tokens, device=device)
    mask = torch.rand(tokens, device=device) < 0.9
    uids = torch.randperm(tokens, device=device)
    inputs = logprobs, advantages, mask
    expected = _covariance64(*inputs)
    count = max(1, math.floor(_RATIO * int(mask.sum())))

    def top(cov: torch.Tensor) -> torch.Tensor:
        return select_top(cov, mask, _RATIO, token_uids=uids)

    def band(cov: torch.Tensor) -> torch.Tensor:
        return select_band(cov, mask, _RATIO, *_BAND, token_uids=uids)

    def eager_top(cov: torch.Tensor) -> torch.Tensor:
        chosen = cov.masked_fill(~mask, -torch.inf).topk(count).indices
        return torch.zeros_like(mask).index_fill_(0, chosen, True)

    def eager_band(cov: torch.Tensor) -> torch.Tensor:
        candidates = (mask & (cov > _BAND[0]) & (cov < _BAND[1])).nonzero().squeeze(1)
        chosen = candidates[torch.randperm(len(candidates), device=device)[:count]]
        return torch.zeros_like(mask).index_fill_(0, chosen, True)

    best = set(expected.masked_fill(~mask, -torch.inf).topk(count).indices.tolist())
    inside = mask & (expected > _BAND[0]) & (expected < _BAND[1])

    def wrong_top(selected: torch.Tensor) -> int:
        return len(best.symmetric_difference(selected.nonzero().squeeze(1).tolist()))

    def wrong_band(selected: torch.Tensor) -> int:
        return int((selected & ~inside).sum()) + abs(int(selected.sum()) - min(count, int(inside.sum())))

    limit = Ceiling("copy of memory, each array once", _BYTES * tokens, ceiling.copy_bytes(device), "B")
    for name, ours, eager, wrong in (
        ("select_top", top, eager_top, wrong_top),
        ("select_band", band, eager_band, wrong_band),
    ):
        contenders = [
            _contender("pyrl", token_covariance, ours, inputs, expected, wrong),
            _contender("PyTorch eager", _eager_covariance, eager, inputs, expected, wrong, is_eager=True),
        ]
        if name == "select_top":  # the other needs numbers of candidates, which a compiled graph has to ask for
            torch._dynamo.reset()
            compiled = torch.compile(lambda x, a, m, f=eager: _both(_eager_covariance, f, (x, a, m)), dynamic=False)
            contenders.append(_call("torch.compile", lambda c=compiled: c(*inputs), expected, mask, wrong))
        yield Case(f"token_covariance, {name}", "forward", f"{tokens:,} tokens", "fp32", contenders, limit)


def _contender(name, covariance, select, inputs, expected, wrong, is_eager: bool = False) -> Contender:
    return _call(name, lambda: _both(covariance, select, inputs), expected, inputs[2], wrong, is_eager)


def _both(covariance, select, inputs) -> tuple[torch.Tensor, torch.Tensor]:
    cov = covariance(*inputs)
    return cov, select(cov)


def _call(
    name: str,
    call: Callable[[], tuple[torch.Tensor, torch.Tensor]],
    expected: torch.Tensor,
    mask: torch.Tensor,
    wrong: Callable[[torch.Tensor], int],
    is_eager: bool = False,
) -> Contender:
    def error(result: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
        cov, selected = result
        return {"covariance": (cov - expected)[mask].abs().max().item(), "tokens selected": wrong(selected)}

    return Contender(name, lambda: call, None, error, is_eager)


def _eager_covariance(logprobs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    count = mask.sum()
    mean = (logprobs * mask).sum() / count
    return (logprobs - mean) * (advantages - (advantages * mask).sum() / count)


def _covariance64(logprobs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _eager_covariance(logprobs.double(), advantages.double(), mask)
