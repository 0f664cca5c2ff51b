"""Hugging Face folders whose weights are PyTorch pickles (`pytorch_model*.bin`), as safetensors."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from pyrl.config import ConfigError
from pyrl.weights.hf_io import PICKLED, PICKLED_INDEX, save_hf_folder


def convert_pickled(source: Path | str, destination: Path | str) -> Path:
    """Write the same tensors, dtypes kept, as safetensors beside config and tokenizer; returns `destination`.

    A file is mapped, not read (but those of before PyTorch 1.6, which cannot be), and tensors are written in shards of
    at most 4 GiB: memory does not grow with the model. Only tensors are unpickled, never code. Raises ConfigError: a
    file that is missing, damaged, or holds more than tensors; `destination` exists.
    """
    source, destination = Path(source), Path(destination)
    if destination.exists():
        raise ConfigError(f"destination {destination} exists: remove it or name another folder")
    if not (source / "config.json").is_file():
        raise ConfigError(f"{source} holds {PICKLED} but no config.json: it is not a whole Hugging Face folder")
    save_hf_folder(_tensors(source), source, destination)
    return destination


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in _files(folder):
        yield from _read(file).items()


def _files(folder: Path) -> list[Path]:
    index = folder / PICKLED_INDEX
    if not index.is_file():
        return [folder / PICKLED]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{index} is not an index of weights: {error}") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"{index} names {', '.join(missing)}, which {folder} lacks: fetch the model again")
    return [folder / name for name in names]


def _read(file: Path) -> dict[str, torch.Tensor]:
    try:
        # Files of before PyTorch 1.6 are no archives and cannot be mapped.
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).split(". ")[0]
        raise ConfigError(f"{file} cannot be read as tensors alone: {reason}") from error
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise ConfigError(f"{file} holds no table of tensors by name")
    return tensors
