"""Finds and loads the compiled ops, once, when `pyrl.ops` is imported."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

LIBRARY = "libpyrl_ops.so"

_REMEDY = (
    "build it from the root of the repository, in an environment that holds torch >= 2.10:\n"
    "    pip install --no-build-isolation --no-deps -e ."
)


def _folder() -> Path:
    """The folder of the built files: the package's own, or, where the package is run from a checkout (an editable
    install, or `python -m pyrl` beside an installed one), the installed package's."""
    folders = [Path(__file__).resolve().parents[1]]
    try:
        folders.append(Path(str(importlib.metadata.distribution("pyrl").locate_file("pyrl"))))
    except importlib.metadata.PackageNotFoundError:
        pass  # not installed: only the package's own folder is left
    for folder in folders:
        if (folder / LIBRARY).is_file():
            return folder
    places = " or ".join(str(folder) for folder in folders)
    raise ImportError(f"the compiled ops of pyrl, {LIBRARY}, are not in {places}; {_REMEDY}")


def _load_build_info(folder: Path) -> ModuleType:
    matches = sorted(folder.glob("_build_info.*"))
    if not matches:
        raise ImportError(f"{folder} holds {LIBRARY} but no _build_info module: the build is incomplete; {_REMEDY}")
    spec = importlib.util.spec_from_file_location("pyrl._build_info", matches[0])
    if spec is None or spec.loader is None:
        raise ImportError(f"{matches[0]} is not a module this Python can load; {_REMEDY}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _load() -> ModuleType:
    folder = _folder()
    try:
        torch.ops.load_library(folder / LIBRARY)
    except OSError as error:
        raise ImportError(
            f"{folder / LIBRARY} cannot be loaded by torch {torch.__version__}: {error}; {_REMEDY}"
        ) from error
    return _load_build_info(folder)


_BUILD_INFO = _load()


def build_info() -> dict[str, object]:
    """What was built: `version` (of pyrl), `cuda` (bool), `architectures` (CUDA, e.g. ["sm_90"]), `compiler`,
    `build_type`, `torch` (the version whose headers it was compiled with)."""
    return _BUILD_INFO.build_info()
