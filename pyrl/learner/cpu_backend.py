"""What Megatron-Core hard-codes for CUDA, mapped to the CPU. Imported only by runs without CUDA.

Megatron asks `torch.cuda` for a device, a stream and a generator, tests `Tensor.type()` against `torch.cuda.*` names
and writes `device="cuda"` into tensor factories. `install` wraps the first two kinds in torch: a call that comes from a
Megatron module gets the CPU's answer, every other caller torch's own, so a stray "cuda" in our code still fails. The
factories are mapped in the Megatron modules that do so and nowhere else: `torch.device(...)` as a context, fake tensors
and the compiler know torch's factories by identity. Nothing is intercepted per operation.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import platform
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

_CPU = torch.device("cpu")
_FACTORIES = ("tensor", "zeros", "empty", "empty_like")
_MODULES_NAMING_CUDA = (
    "megatron.core.dist_checkpointing.exchange_utils",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.optimizer",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.utils",
)
_installed = False


def install() -> None:
    """Map Megatron's CUDA calls to the CPU for the rest of the process. A second call does nothing.

    Raises RuntimeError where CUDA is available: there the mapping would hide the accelerator.
    """
    global _installed
    if _installed:
        return
    if torch.cuda.is_available():
        raise RuntimeError("learner.cpu_backend maps CUDA calls to the CPU, but CUDA is available on this machine")
    _installed = True
    for name in _MODULES_NAMING_CUDA:
        importlib.import_module(name).torch = _TORCH_ON_CPU
    _wrap(torch.Tensor, "cuda", _stay_on_cpu)
    _wrap(torch.Tensor, "type", _type_of_cuda)
    for name, answer in _CUDA_ANSWERS.items():
        _wrap(torch.cuda, name, functools.partial(_answer_with, answer))
    _map_generators()
    _keep_freed_memory()


class _TorchOnCpu(ModuleType):
    """torch, with factories that take "cuda" for the CPU."""

    def __init__(self) -> None:
        super().__init__("torch")
        for name in _FACTORIES:
            setattr(self, name, functools.partial(self._make, getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def _make(factory: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = _CPU
        return factory(*args, **kwargs)


_TORCH_ON_CPU = _TorchOnCpu()


def _null(*args: Any, **kwargs: Any) -> None:
    """Streams, events and synchronisation have no meaning on the CPU, where every call is complete on return."""


class _Stream:
    """The one "stream" of the CPU."""

    wait_stream = wait_event = record_event = synchronize = _null


_STREAM = _Stream()
_CUDA_ANSWERS: dict[str, Callable[..., Any]] = {
    "current_device": lambda *args: _CPU,
    "synchronize": _null,
    "empty_cache": _null,
    "current_stream": lambda *args: _STREAM,
    "default_stream": lambda *args: _STREAM,
    "manual_seed": torch.manual_seed,
    "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
    "set_rng_state": lambda state, *args, **kwargs: torch.set_rng_state(state),
}


def _map_generators() -> None:
    """The two functions by which Megatron's RNG tracker reads and sets the default CUDA generator."""
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)


def _keep_freed_memory() -> None:
    """Let malloc keep the activations that a pass frees for the next one.

    By default glibc gives large blocks back to the kernel at once, and every pass pays again for the page faults.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    libc.mallopt(mmap_threshold, 32 * 2**20)  # the largest that glibc takes
    libc.mallopt(trim_threshold, 2**30)


def _wrap(owner: ModuleType | type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(make(original)))


def _called_by_megatron() -> bool:
    """Whether the caller of the wrapper that asks is a Megatron module."""
    return sys._getframe(2).f_globals.get("__name__", "").startswith("megatron.")


def _stay_on_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    def cuda(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return tensor if _called_by_megatron() else original(tensor, *args, **kwargs)

    return cuda


def _type_of_cuda(original: Callable[..., Any]) -> Callable[..., Any]:
    def type_name(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = original(tensor, *args, **kwargs)
        if not args and not kwargs and _called_by_megatron():
            return result.replace("torch.", "torch.cuda.", 1)
        return result

    return type_name


def _answer_with(answer: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    def answered(*args: Any, **kwargs: Any) -> Any:
        return (answer if _called_by_megatron() else original)(*args, **kwargs)

    return answered
