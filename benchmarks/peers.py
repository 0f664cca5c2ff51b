"""Kernels of other projects, from their installed packages. `python -m benchmarks.install` puts them beside .venv."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import site
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "build" / "bench-peers"
INSTALL_ERRORS = "install_errors.json"


@dataclass(frozen=True)
class Peer:
    name: str
    module: str
    function: str
    requirements: tuple[str, ...]
    """Installed without their own dependencies, which would replace torch; the first is the peer itself."""


LIGER = Peer("Liger (Triton)", "liger_kernel.ops.cross_entropy", "LigerCrossEntropyFunction", ("liger-kernel",))
VERL = Peer(
    "verl (Triton)",
    "verl.utils.kernel.linear_cross_entropy",
    "linear_cross_entropy",
    ("verl", "ray", "msgpack", "tensordict<0.11", "pyvers", "orjson", "codetiming", "hydra-core", "omegaconf",
     "antlr4-python3-runtime==4.9.3"),
)  # fmt: skip
QUACK = Peer(
    "QuACK",
    "quack.cross_entropy",
    "cross_entropy",
    ("quack-kernels", "nvidia-cutlass-dsl", "nvidia-cutlass-dsl-libs-core", "nvidia-cutlass-dsl-libs-base",
     "nvidia-cutlass-dsl-libs-cu13", "cuda-bindings", "cuda-pathfinder", "apache-tvm-ffi", "torch-c-dlpack-ext"),
)  # fmt: skip
TRANSFORMER_ENGINE = Peer(
    "Transformer Engine",
    "transformer_engine.pytorch.cross_entropy",
    "parallel_cross_entropy",
    ("transformer-engine", "transformer-engine-cu13", "transformer-engine-torch", "onnxscript", "onnx"),
)
ALL = (LIGER, VERL, QUACK, TRANSFORMER_ENGINE)


def load(peer: Peer) -> tuple[Callable[..., Any] | None, str]:
    """(the peer's function, its version), or (None, the errors of its installation and of its import)."""
    if FOLDER.is_dir() and str(FOLDER) not in sys.path:
        site.addsitedir(str(FOLDER))  # the CUTLASS DSL finds its own folder by a .pth file
    try:
        function = getattr(importlib.import_module(peer.module), peer.function)
    except Exception as error:  # a broken package raises anything
        return None, "; ".join(filter(None, [_install_error(peer), f"{type(error).__name__}: {_last_line(error)}"]))
    return function, importlib.metadata.version(peer.requirements[0])


def _install_error(peer: Peer) -> str:
    file = FOLDER / INSTALL_ERRORS
    return json.loads(file.read_text()).get(peer.name, "") if file.is_file() else ""


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else ""
