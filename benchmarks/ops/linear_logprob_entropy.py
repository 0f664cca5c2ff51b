"""Log-prob and entropy from hidden states and the LM head's weight."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import ceiling, peers
from benchmarks.case import Case, Ceiling
from benchmarks.ops.common import BACKWARD, FORMS, FORWARD, Outputs, Reference, contender, directions, peer_forward
from pyrl.ops import linear_logprob_entropy

_CPU_SHAPES = ((256, 512, 32_768, torch.float32),)
_GPU_SHAPES = ((8192, 4096, 131_072, torch.bfloat16), (8192, 5120, 152_064, torch.bfloat16))
_PUBLISHED = {FORWARD: 715, BACKWARD: 696}
"""TFLOP/s of Liger's sm_90 kernel, both together 701: linkedin/Liger-Kernel #1370, H100, the first of the shapes."""


def cases(device: torch.device, scale: float) -> Iterator[Case]:
    on_gpu = device.type == "cuda"
    for tokens, features, vocabulary, dtype in _GPU_SHAPES if on_gpu else _CPU_SHAPES:
        tokens = max(2, int(tokens * scale))
        features, vocabulary = (max(8, int(n * scale) // 8 * 8) for n in (features, vocabulary))
        hidden = torch.randn(tokens, features, device=device).to(dtype)
        weight = (3 / features**0.5 * torch.randn(vocabulary, features, device=device)).to(dtype)
        labels = torch.randint(vocabulary, (tokens,), device=device)
        upstream = torch.randn(tokens, device=device), torch.randn(tokens, device=device)
        for direction in directions(device):
            yield _case(direction, hidden, weight, labels, upstream)


def _case(direction: str, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, upstream: Outputs) -> Case:
    checked = Reference(lambda rows: hidden[rows].double() @ weight.double().t(), labels, upstream)

    def of(name: str, forward, **rest):
        def error(outputs: Outputs, gradients: Outputs) -> dict[str, float]:
            return checked.error(outputs, gradients, lambda gradient: gradient @ weight.double())

        return contender(name, direction, forward, [hidden, weight], upstream, error, **rest)

    contenders = [of("pyrl, fp32 logits", lambda h, w: linear_logprob_entropy(h, w, labels))]
    if hidden.dtype == torch.bfloat16:
        rounded = lambda h, w: linear_logprob_entropy(h, w, labels, logits_dtype="bf16")  # noqa: E731
        contenders.append(of("pyrl, bf16 logits", rounded))
    for name, form in FORMS.items():
        run = lambda h, w, f=form: f((h @ w.t()).float(), labels)  # noqa: E731
        contenders.append(of(f"PyTorch eager, {name}", run, is_eager=True))
    torch._dynamo.reset()
    for name, form in FORMS.items():
        compiled = torch.compile(lambda h, w, y, f=form: f((h @ w.t()).float(), y), dynamic=False)
        contenders.append(of(f"torch.compile, {name}", lambda h, w, c=compiled: c(h, w, labels)))
    missing: dict[str, str] = {}
    if hidden.is_cuda:
        if verl := peer_forward(peers.VERL, missing):
            contenders.append(of(peers.VERL.name, lambda h, w: tuple(verl(h, w, labels, 1.0, "none"))))
    else:
        missing[peers.VERL.name] = f"no CUDA device: not measured ({peers.load(peers.VERL)[1]})"
    published = _PUBLISHED.get(direction, 701)
    missing["Liger (CuTe, sm_90)"] = f"not measured here; published: {published} TFLOP/s (H100, H = 4096, V = 131,072)"
    products = {FORWARD: 1, BACKWARD: 3}.get(direction, 4)  # of T, H and V; backward computes the logits again
    work = products * 2 * hidden.numel() * len(weight)
    dtype = "bf16" if hidden.dtype == torch.bfloat16 else "fp32"
    limit = Ceiling(f"{dtype} GEMM of the same shape", work, ceiling.matmul_operations(hidden, weight), "FLOP")
    shape = f"T = {hidden.shape[0]}, H = {hidden.shape[1]}, V = {len(weight):,}"
    return Case("linear_logprob_entropy", direction, shape, dtype, contenders, limit, missing)
