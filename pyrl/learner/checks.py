"""What must hold of every update before the optimizer may step."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from pyrl.learner.parallel import Parallel
from pyrl.ops.device_flag import device_flag, take_errors

_LOGPROB_MAX = 1e-5
_ENTROPY_SLACK = 1e-5


class NonFiniteError(RuntimeError):
    """A loss, log-prob, entropy or gradient that is not finite or not possible, or a value that an op on a device
    refused. The parameters were not changed."""


class Watch:
    """Gathers the checks of one pass in a flag on the device that is read once, by `stop_if_bad`."""

    def __init__(self, parallel: Parallel, vocab_size: int, what: str) -> None:
        self._parallel = parallel
        self._entropy_max = math.log(vocab_size) * (1 + 1e-6) + _ENTROPY_SLACK
        self._what = what
        self._bad = torch.zeros((), dtype=torch.bool, device=parallel.device)
        self._seen: list[tuple[str, int, torch.Tensor]] = []

    def tokens(self, micro_batch: int, logprobs: torch.Tensor, entropy: torch.Tensor) -> None:
        """Watch per-token values, [T] each."""
        for name, value in (("logprobs", logprobs.detach()), ("entropy", entropy.detach())):
            self._bad |= ~self._valid(name, value).all()
            self._seen.append((name, micro_batch, value))

    def loss(self, micro_batch: int, loss: torch.Tensor) -> None:
        """Watch the loss of one micro-batch."""
        value = loss.detach().reshape(1)
        self._bad |= ~value.isfinite().all()
        self._seen.append(("loss", micro_batch, value))

    def stop_if_bad(self, grad_norm: float | None = None) -> None:
        """Raise NonFiniteError on every rank where any rank saw a bad value. Collective over all ranks."""
        parallel = self._parallel
        self._bad |= device_flag(parallel.device).any()
        if parallel.world_size > 1:
            flag = self._bad.to(torch.int32)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            self._bad = flag.bool()
        if not self._bad.item():
            if grad_norm is not None and not math.isfinite(grad_norm):
                raise NonFiniteError(f"grad_norm is {grad_norm} in {self._what}, on rank {parallel.rank}")
            return
        mine = [*self._report(), *self._refused()]
        reports: list[list[str]] = [mine]
        if parallel.world_size > 1:
            reports = [[] for _ in range(parallel.world_size)]
            dist.all_gather_object(reports, mine, group=parallel.cpu_group)
        raise NonFiniteError("; ".join(report for rank in reports for report in rank))

    def _refused(self) -> list[str]:
        """By ops that could not wait for the device to raise."""
        messages = take_errors(self._parallel.device)
        return [f"{message} (in {self._what}, on rank {self._parallel.rank})" for message in messages]

    def _valid(self, name: str, value: torch.Tensor) -> torch.Tensor:
        if name == "logprobs":
            return value.isfinite() & (value <= _LOGPROB_MAX)
        if name == "entropy":
            return (value >= -_ENTROPY_SLACK) & (value <= self._entropy_max)
        return value.isfinite()

    def _report(self) -> list[str]:
        for name, micro_batch, value in self._seen:
            bad = (~self._valid(name, value)).nonzero().flatten()
            if len(bad):
                token = "" if name == "loss" else f" at token {bad[0].item()} ({len(bad)} of {len(value)} tokens)"
                return [
                    f"{name} is {value[bad[0]].item()}{token} of micro-batch {micro_batch} in {self._what}, on rank "
                    f"{self._parallel.rank}"
                ]
        return []
