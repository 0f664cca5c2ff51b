"""What the ops' cases share: contenders in the three directions, the PyTorch forms, the float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch

from benchmarks import peers
from benchmarks.case import Contender
from pyrl.ops import reference

Outputs = tuple[torch.Tensor, ...]
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward + backward"
_CHECKED_ROWS = 64
_CHECKED_AT_ONCE = 8


def directions(device: torch.device) -> tuple[str, ...]:
    """On a GPU both together too: some peers form the gradient in their forward pass."""
    return (FORWARD, BACKWARD, BOTH) if device.type == "cuda" else (FORWARD, BACKWARD)


def contender(
    name: str,
    direction: str,
    forward: Callable[..., Outputs],
    leaves: Sequence[torch.Tensor],
    upstream: Outputs,
    error: Callable[[Outputs, Outputs], dict[str, float]],
    *,
    overwrites: bool = False,
    is_eager: bool = False,
    note: str = "",
) -> Contender:
    """`forward(*leaves)` and its gradient with respect to `leaves` for `upstream` (of the first outputs, where a peer
    has fewer). `error(outputs, gradients)`. `overwrites`: it changes the leaves, so it gets its own."""
    own = [leaf.clone() for leaf in leaves] if overwrites else list(leaves)

    def graph() -> tuple[list[torch.Tensor], Outputs]:
        inputs = [leaf.detach().requires_grad_() for leaf in own]
        return inputs, forward(*inputs)

    def gradients(inputs: list[torch.Tensor], outputs: Outputs) -> Outputs:
        return torch.autograd.grad(outputs, inputs, upstream[: len(outputs)])

    @torch.no_grad()
    def run_forward() -> tuple[Outputs, Outputs]:
        return forward(*own), ()

    def run_both() -> tuple[Outputs, Outputs]:
        inputs, outputs = graph()
        return tuple(output.detach() for output in outputs), gradients(inputs, outputs)

    def restored() -> tuple[Outputs, Outputs]:
        for mine, leaf in zip(own, leaves, strict=True):
            mine.copy_(leaf)
        return run_both() if direction != FORWARD else run_forward()

    def build() -> Callable[[], object]:
        if direction == FORWARD:
            return run_forward
        if direction == BOTH:
            return run_both
        inputs, outputs = graph()
        return lambda: gradients(inputs, outputs)

    whole = restored if overwrites else run_forward if direction == FORWARD else run_both
    return Contender(name, build, whole, lambda result: error(*result), is_eager, note)


# The two forms in which trainers write it, of fp32 logits.


def log_softmax_form(logits: torch.Tensor, labels: torch.Tensor) -> Outputs:
    log_p = torch.log_softmax(logits, dim=-1)
    return log_p.gather(1, labels[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)


def logsumexp_form(logits: torch.Tensor, labels: torch.Tensor) -> Outputs:
    lse = torch.logsumexp(logits, dim=-1)
    p = torch.softmax(logits, dim=-1)
    return logits.gather(1, labels[:, None]).squeeze(1) - lse, lse - (p * logits).sum(-1)


FORMS = {"log_softmax": log_softmax_form, "logsumexp + softmax": logsumexp_form}


def peer_forward(peer: peers.Peer, missing: dict[str, str]) -> Callable[..., torch.Tensor] | None:
    """The peer's function; where it cannot be had, `missing` gets the reason."""
    function, about = peers.load(peer)
    if function is None:
        missing[peer.name] = about
    return function


class Reference:
    """The op in float64 on some of the rows, evenly spread."""

    def __init__(self, logits_of: Callable[[torch.Tensor], torch.Tensor], labels: torch.Tensor, upstream: Outputs):
        """`logits_of(rows)`: the fp64 logits of these rows."""
        tokens = len(labels)
        self.rows = torch.linspace(0, tokens - 1, min(_CHECKED_ROWS, tokens), device=labels.device).long()
        self._logits_of, self._labels, self._upstream = logits_of, labels, upstream
        self._values = cache(self._values)

    def _values(self, outputs: int) -> list[tuple[torch.Tensor, Outputs, torch.Tensor]]:
        """(rows, outputs, gradient of the logits) a few rows at a time, for the first `outputs` upstream gradients."""
        values = []
        for rows in self.rows.split(_CHECKED_AT_ONCE):
            logits = self._logits_of(rows).requires_grad_()
            expected = reference.logprob_entropy(logits, self._labels[rows])
            upstream = [g[rows].double() for g in self._upstream[:outputs]]
            (gradient,) = torch.autograd.grad(expected[:outputs], logits, upstream)
            values.append((rows, tuple(e.detach() for e in expected), gradient))
        return values

    def error(
        self,
        outputs: Outputs,
        gradients: Outputs,
        expected_gradient: Callable[[torch.Tensor], torch.Tensor] = lambda gradient: gradient,
    ) -> dict[str, float]:
        """Of the outputs, and of the first gradient, which `expected_gradient` makes of that of the logits."""
        worst: dict[str, float] = {}
        for rows, expected, gradient in self._values(len(outputs)):
            pairs = dict(zip(("logprob", "entropy"), zip(outputs, expected, strict=False), strict=False))
            if gradients:
                worst.setdefault("gradient", 0.0)
                pairs["gradient"] = (gradients[0], expected_gradient(gradient))
            for name, (got, wanted) in pairs.items():
                difference = (got[rows].double() - wanted).abs().max().item()
                worst[name] = max(worst.get(name, 0.0), difference)
        return dict(sorted(worst.items(), key=lambda item: ("logprob", "entropy", "gradient").index(item[0])))
