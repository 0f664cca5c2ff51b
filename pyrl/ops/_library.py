"""Finds and loads the compiled ops, once, when `pyrl.ops` is imported."""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.metadata
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import torch

LIBRARY = "libpyrl_ops.so"
VARIABLE = "PYRL_OPS_LIBRARY"
"""Environment: the path of the library, in place of the installed one; a plain CMake build is tried out so."""

_REMEDY = (
    "build it from the root of the repository, in an environment that holds torch >= 2.10:\n"
    "    pip install --no-build-isolation --no-deps -e ."
)


def _find() -> Path:
    """The library: the one the environment names; or the one in the package's own folder or, where the package is run
    from a checkout (an editable install, or `python -m pyrl` beside an installed one), in the installed package's."""
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_file():
            raise ImportError(f"{VARIABLE}: got {named}, wanted the path of a built {LIBRARY}; unset it, or build one")
        return Path(named).resolve()
    folders = [Path(__file__).resolve().parents[1]]
    try:
        folders.append(Path(str(importlib.metadata.distribution("pyrl").locate_file("pyrl"))))
    except importlib.metadata.PackageNotFoundError:
        pass  # not installed: only the package's own folder is left
    for folder in folders:
        if (folder / LIBRARY).is_file():
            return folder / LIBRARY
    places = " or ".join(str(folder) for folder in folders)
    raise ImportError(f"the compiled ops of pyrl, {LIBRARY}, are not in {places}; {_REMEDY}")


def _load() -> Path:
    library = _find()
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise ImportError(f"{library} cannot be loaded by torch {torch.__version__}: {error}; {_REMEDY}") from error
    return library


_LOADED = _load()


@functools.cache
def _build_info_module() -> ModuleType:
    """Beside the library, and not needed by it: only whoever asks what was built pays for it, or misses it."""
    folder = _LOADED.parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        if (file := folder / f"_build_info{suffix}").is_file():
            spec = importlib.util.spec_from_file_location("pyrl._build_info", file)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise ImportError(f"{folder} holds {LIBRARY} but no _build_info module for this Python; {_REMEDY}")


def build_info() -> dict[str, object]:
    """What was built: `version` (of pyrl), `cuda` (bool), `architectures` (CUDA, e.g. ["sm_90"]), `nvcc` (its version;
    None without CUDA), `compiler`, `build_type`, `torch` (the version whose headers it was compiled with). Raises
    ImportError where the small Python module that knows this was not built, or was built for another Python; the ops
    work all the same."""
    return _build_info_module().build_info()
