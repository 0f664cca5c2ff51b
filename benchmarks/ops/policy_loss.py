"""The per-token surrogate with dual clip and KL-Cov's penalty, and its gradient."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import ceiling
from benchmarks.case import Case, Ceiling
from benchmarks.ops.common import BOTH, FORWARD, Outputs, contender
from pyrl.ops import policy_loss

_TOKENS = 1_048_576
_LOW, _HIGH, _C, _COEFFICIENT = 0.2, 0.28, 3.0, 1.0
_BYTES = {FORWARD: 14 + 9, BOTH: 14 + 9 + 12}  # read, written; and the product of two arrays


def cases(device: torch.device, scale: float) -> Iterator[Case]:
    tokens = max(64, int(_TOKENS * scale))
    old = -torch.rand(tokens, device=device) * 5
    logprobs = old + 0.2 * torch.randn(tokens, device=device)
    advantages = torch.randn(tokens, device=device)
    mask = torch.rand(tokens, device=device) < 0.9
    selected = mask & (torch.rand(tokens, device=device) < 0.01)
    upstream = (torch.rand(tokens, device=device),)
    constants = dict(clip_ratio_low=_LOW, clip_ratio_high=_HIGH, clip_ratio_c=_C, kl_cov_coef=_COEFFICIENT)

    def ours(x: torch.Tensor) -> Outputs:
        return (policy_loss(x, old, advantages, mask, selected=selected, **constants).loss,)

    wide = logprobs.double().requires_grad_()
    expected = _surrogate(wide, old.double(), advantages.double(), mask, selected)
    (expected_gradient,) = torch.autograd.grad(expected, wide, upstream[0].double())

    def error(outputs: Outputs, gradients: Outputs) -> dict[str, float]:
        found = {"loss": (outputs[0] - expected.detach()).abs().max().item()}
        if gradients:
            found["gradient"] = (gradients[0] - expected_gradient).abs().max().item()
        return found

    for direction in (FORWARD, BOTH):
        torch._dynamo.reset()
        compiled = torch.compile(_surrogate, dynamic=False)
        contenders = [
            contender(name, direction, forward, [logprobs], upstream, error, is_eager=is_eager, note=note)
            for name, forward, is_eager, note in (
                ("pyrl", ours, False, "with six sums for metrics and the tokens that a bound binds"),
                ("PyTorch eager", lambda x: (_surrogate(x, old, advantages, mask, selected),), True, "the loss alone"),
                ("torch.compile", lambda x, c=compiled: (c(x, old, advantages, mask, selected),), False, "loss alone"),
            )
        ]
        limit = Ceiling("copy of memory, each array once", _BYTES[direction] * tokens, ceiling.copy_bytes(device), "B")
        yield Case("policy_loss", direction, f"{tokens:,} tokens", "fp32", contenders, limit)


def _surrogate(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, selected: torch.Tensor
) -> torch.Tensor:
    d = logprobs - old
    ratio = d.exp()
    clipped = torch.maximum(-ratio * advantages, -ratio.clamp(1 - _LOW, 1 + _HIGH) * advantages)
    bounded = torch.where(advantages < 0, torch.minimum(clipped, -_C * advantages), clipped)
    return (bounded + selected * _COEFFICIENT * d.abs()) * mask
