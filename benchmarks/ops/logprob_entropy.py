"""Log-prob and entropy from logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import ceiling, peers
from benchmarks.case import Case, Ceiling, Contender
from benchmarks.ops.common import BACKWARD, FORMS, FORWARD, Outputs, Reference, contender, directions, peer_forward
from pyrl.ops import logprob_entropy

_CPU_SHAPES = ((256, 151_936, torch.float32), (256, 151_936, torch.bfloat16))
_GPU_SHAPES = ((8192, 152_064, torch.bfloat16), (8192, 19_008, torch.bfloat16))


def cases(device: torch.device, scale: float) -> Iterator[Case]:
    for tokens, vocabulary, dtype in _GPU_SHAPES if device.type == "cuda" else _CPU_SHAPES:
        tokens, vocabulary = max(2, int(tokens * scale)), max(8, int(vocabulary * scale) // 8 * 8)
        logits = (3 * torch.randn(tokens, vocabulary, device=device)).to(dtype)
        labels = torch.randint(vocabulary, (tokens,), device=device)
        upstream = torch.randn(tokens, device=device), torch.randn(tokens, device=device)
        for direction in directions(device):
            yield _case(direction, logits, labels, upstream)


def _case(direction: str, logits: torch.Tensor, labels: torch.Tensor, upstream: Outputs) -> Case:
    checked = Reference(lambda rows: logits[rows].double(), labels, upstream)

    def of(name: str, forward, **rest) -> Contender:
        return contender(name, direction, forward, [logits], upstream, checked.error, **rest)

    contenders = [of("pyrl", lambda x: logprob_entropy(x, labels))]
    for name, form in FORMS.items():
        contenders.append(of(f"PyTorch eager, {name}", lambda x, f=form: f(x.float(), labels), is_eager=True))
    if logits.dtype == torch.bfloat16 and not logits.is_cuda:
        wide = logits.float()  # beside it, so that what half the bytes are worth does not hang on when it was measured
        run = lambda x: logprob_entropy(x, labels)  # noqa: E731
        contenders.append(contender("pyrl, of fp32 logits", direction, run, [wide], upstream, checked.error))
    torch._dynamo.reset()
    for name, form in FORMS.items():
        compiled = torch.compile(lambda x, y, f=form: f(x.float(), y), dynamic=False)
        contenders.append(of(f"torch.compile, {name}", lambda x, c=compiled: c(x, labels)))
    missing: dict[str, str] = {}
    if logits.is_cuda:
        contenders += _peers(direction, labels, of, missing)
    else:
        for peer in (peers.LIGER, peers.QUACK, peers.TRANSFORMER_ENGINE):
            about = peers.load(peer)[1]
            missing[peer.name] = f"no CUDA device: not measured ({about})"
    shape = f"T = {logits.shape[0]}, V = {logits.shape[1]:,}"
    limit = _ceiling(direction, logits)
    return Case("logprob_entropy", direction, shape, _name(logits.dtype), contenders, limit, missing)


def _peers(direction: str, labels: torch.Tensor, of, missing: dict[str, str]) -> Iterator[Contender]:
    note = "log-prob only, no entropy"
    if liger := peer_forward(peers.LIGER, missing):
        if direction == BACKWARD:
            missing[peers.LIGER.name] = "its gradient is formed in the forward pass: see both together"
        else:
            run = lambda x: (-liger.apply(x, labels, None, -100, 0.0, 0.0, "none")[0],)  # noqa: E731
            yield of(peers.LIGER.name, run, overwrites=True, note=f"{note}; overwrites the logits")
    if quack := peer_forward(peers.QUACK, missing):
        yield of(peers.QUACK.name, lambda x: (-quack(x, labels, reduction="none"),), note=note)
    if engine := peer_forward(peers.TRANSFORMER_ENGINE, missing):
        yield of(peers.TRANSFORMER_ENGINE.name, lambda x: (-engine(x[None], labels[None])[0],), note=note)


def _ceiling(direction: str, logits: torch.Tensor) -> Ceiling:
    if not logits.is_cuda:
        name = "exp, max and two multiply-adds per element, in cache, all threads (benchmarks/ceiling.cpp)"
        return Ceiling(name, logits.numel(), ceiling.row_elements, "elements")
    passes = {FORWARD: 1, BACKWARD: 2}.get(direction, 3)  # over the logits: read; read and write
    work = passes * logits.numel() * logits.itemsize
    return Ceiling("copy of device memory", work, ceiling.copy_bytes(logits.device), "B")


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
