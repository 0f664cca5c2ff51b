"""Hugging Face folders: safetensors into a sharded Megatron model, and back out."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pyrl.config import ConfigError
from pyrl.weights.families import ModelShape, hf_metadata, parameter_rules

_INDEX = "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_SHARD_BYTES = 4 * 2**30
_WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".gguf", ".pt", ".pth")
_DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class HFTensors:
    """The tensors of a Hugging Face folder, sharded or in one file, read one at a time.

    Raises ConfigError: no safetensors, an index that names a missing file, or an unreadable file.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._files: dict[Path, safe_open] = {}
        self._file_of = self._locate()

    def names(self) -> set[str]:
        return set(self._file_of)

    def get(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU, as stored. Raises ConfigError where the folder does not hold it."""
        return self._open(self._located(name)).get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, from the file's header alone; raises as `get`."""
        return tuple(self._open(self._located(name)).get_slice(name).get_shape())

    def _located(self, name: str) -> Path:
        if name not in self._file_of:
            raise ConfigError(f"model.path {self.folder} holds no tensor {name!r}: the checkpoint is incomplete")
        return self._file_of[name]

    def _locate(self) -> dict[str, Path]:
        index = self.folder / _INDEX
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text())["weight_map"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ConfigError(f"model.path: {index} is not a safetensors index: {error}") from error
            return {name: self.folder / file for name, file in weight_map.items()}
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise ConfigError(f"model.path {self.folder} holds no *.safetensors: {_remedy(self.folder)}")
        return {name: file for file in files for name in self._open(file).keys()}

    def _open(self, file: Path) -> safe_open:
        if file not in self._files:
            try:
                self._files[file] = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ConfigError(f"model.path: {file} cannot be read as safetensors: {error}") from error
        return self._files[file]


def has_pickled_weights(folder: Path | str) -> bool:
    return any((Path(folder) / name).is_file() for name in (PICKLED_INDEX, PICKLED))


def _remedy(folder: Path) -> str:
    if has_pickled_weights(folder) or len(list(folder.glob("*.gguf"))) == 1:
        return f"convert it first: `pyrl convert {folder} NEW_FOLDER`"
    return "copy the model's weights into it"


def check_hf_weights(shape: ModelShape, folder: Path | str) -> HFTensors:
    """A folder that holds the tensors of `shape` and no others, as the headers of its files say; it is returned open.

    Raises ConfigError: a tensor that is missing, of a wrong shape, or that the family's table does not know.
    """
    source = HFTensors(folder)
    expected = hf_metadata(shape)
    _refuse_unknown(source, {name for name, _ in expected})
    for name, wanted in expected:
        if source.shape(name) != wanted:
            raise ConfigError(f"model.path {folder}: {name} is {source.shape(name)}, config.json says {wanted}")
    return source


@torch.no_grad()
def load_hf_weights(
    model: torch.nn.Module,
    shape: ModelShape,
    folder: Path | str,
    *,
    padded_vocab_size: int,
    tp_rank: int = 0,
    tp_size: int = 1,
    pp_rank: int = 0,
    pp_size: int = 1,
) -> None:
    """Copy a folder's weights into this rank's shard of `model` (an unwrapped GPTModel), cast to its dtype.

    Raises ConfigError as `check_hf_weights`, and for NaN or infinity in what this rank loads.
    """
    source = check_hf_weights(shape, folder)
    parameters = dict(model.named_parameters())
    for placed in parameter_rules(shape, pp_size, pp_rank):
        tensors = [source.get(name) for name in placed.rule.hf]
        part = placed.rule.layout.shard(tensors, shape, padded_vocab_size, tp_rank, tp_size)
        parameter = parameters.pop(placed.name)
        if part.shape != parameter.shape:
            raise RuntimeError(f"{placed.name}: table gives {tuple(part.shape)}, model has {tuple(parameter.shape)}")
        if not part.isfinite().all():
            raise ConfigError(f"model.path {folder}: {_non_finite(source, placed.rule.hf)}")
        parameter.copy_(part)
    if parameters:
        raise RuntimeError(f"parameters that no rule of {shape.family} loads: {sorted(parameters)}")


def _non_finite(source: HFTensors, names: Iterable[str]) -> str:
    name = next(name for name in names if not source.get(name).isfinite().all())
    tensor = source.get(name)
    place = tuple((~tensor.isfinite()).nonzero()[0].tolist())
    count = int((~tensor.isfinite()).sum())
    return (
        f"{name} holds {count} values that are NaN or infinite, the first {float(tensor[place])} at {list(place)}: the "
        "file is damaged or its training diverged; fetch the model again"
    )


def save_hf_folder(tensors: Iterable[tuple[str, torch.Tensor]], source: Path | str, folder: Path | str) -> None:
    """Write a Hugging Face folder: `tensors` as safetensors, config and tokenizer files copied from `source`.

    Everything is written to a temporary folder beside `folder`, which is then renamed; an older `folder` is replaced.
    On an error nothing stays behind and an older `folder` is untouched. Raises OSError (disk full, no permission).
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    work.chmod(0o755)  # mkdtemp's 0700 would hide the model from a server of another user
    try:
        dtype = _write_shards(tensors, work)
        _copy_side_files(Path(source), work, dtype)
        _replace(folder, work)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _refuse_unknown(source: HFTensors, known: set[str]) -> None:
    # Rotary tables are recomputed; a tied head is often stored a second time.
    ignored = {name for name in source.names() if name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight"}
    unknown = sorted(source.names() - known - ignored)
    if unknown:
        raise ConfigError(
            f"model.path {source.folder}: {len(unknown)} tensors have no place in the model, such as {unknown[0]!r}"
        )


def _write_shards(tensors: Iterable[tuple[str, torch.Tensor]], work: Path) -> torch.dtype:
    """Write shards of at most 4 GiB, with an index where there are several; return the dtype of the first weights."""
    weight_map: dict[str, int] = {}
    total, count, dtype = 0, 0, None
    for count, shard in enumerate(_group(tensors), start=1):
        dtype = dtype or next((t.dtype for t in shard.values() if t.dtype in _DTYPE_NAMES), None)
        total += sum(t.nbytes for t in shard.values())
        weight_map |= dict.fromkeys(shard, count)
        _save(shard, work / _part_name(count))
    if dtype is None:
        raise ValueError(f"no tensor of {', '.join(_DTYPE_NAMES.values())} to write")
    if count == 1:
        (work / _part_name(1)).rename(work / "model.safetensors")
        return dtype
    names = {i: f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)}
    for i, name in names.items():
        (work / _part_name(i)).rename(work / name)
    index = {"metadata": {"total_size": total}, "weight_map": {k: names[i] for k, i in weight_map.items()}}
    (work / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return dtype


def _save(shard: dict[str, torch.Tensor], file: Path) -> None:
    try:
        save_file(shard, file, metadata={"format": "pt"})
    except SafetensorError as error:  # the library's own type for a full disk
        raise OSError(f"cannot write {file}: {error}") from error


def _part_name(number: int) -> str:
    return f"part-{number}.safetensors"


def _group(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > _SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        size += tensor.nbytes
    if shard:
        yield shard


def _copy_side_files(source: Path, work: Path, dtype: torch.dtype) -> None:
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHT_SUFFIXES) and file.name != "config.json":
            shutil.copyfile(file, work / file.name)
    config = json.loads((source / "config.json").read_text())
    config.pop("torch_dtype", None)
    config.pop("quantization_config", None)
    config["dtype"] = _DTYPE_NAMES[dtype]
    (work / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _replace(folder: Path, work: Path) -> None:
    if not folder.exists():
        work.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", suffix=".tmp", dir=folder.parent))
    folder.rename(old / folder.name)
    work.rename(folder)
    shutil.rmtree(old)
