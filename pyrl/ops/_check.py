"""Argument checks shared by the ops: a ValueError names the argument, what it got and what was wanted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist


def _describe(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)} on {value.device}"
    return f"{type(value).__name__} {value!r}"


def wrong(name: str, got: object, wanted: str) -> ValueError:
    """The ValueError for argument `name`; a tensor is described by dtype, shape and device."""
    return ValueError(f"{name}: got {_describe(got)}, wanted {wanted}")


def tensor(
    name: str,
    value: object,
    dtypes: Sequence[torch.dtype],
    shape: Sequence[int | str],
    device: torch.device | None = None,
) -> torch.Tensor:
    """`value` itself, if it is a tensor of one of `dtypes` and of `shape`, whose string entries are free dimensions.

    Raises ValueError otherwise, and where it is not on `device`.
    """
    names = " or ".join(str(d) for d in dtypes)
    wanted = f"{names} [{', '.join(str(s) for s in shape)}]" + (f" on {device}" if device else "")
    if not isinstance(value, torch.Tensor) or value.dtype not in dtypes or value.dim() != len(shape):
        raise wrong(name, value, wanted)
    if any(isinstance(want, int) and got != want for got, want in zip(value.shape, shape, strict=True)):
        raise wrong(name, value, wanted)
    if device is not None and value.device != device:
        raise wrong(name, value, wanted)
    return value


def fp64_is_on_the_cpu(name: str, value: torch.Tensor) -> None:
    """Raises ValueError for an fp64 `value` on CUDA, where the row kernels have none."""
    if value.dtype == torch.float64 and value.device.type != "cpu":
        raise wrong(name, value, "fp32, bf16 or fp16 there; fp64 has a CPU kernel alone: call .float() or .cpu() first")


def group_size(group: dist.ProcessGroup | None) -> int:
    """Ranks of `group`; 1 for None. Raises ValueError where this process is not in it."""
    if group is None:
        return 1
    if dist.get_rank(group) < 0:
        raise wrong("group", group, "a process group that this rank belongs to, or None")
    return dist.get_world_size(group)
