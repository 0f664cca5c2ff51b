"""Save and load a learner: Megatron's distributed checkpoint inside a folder of `checkpoint_store`.

Model and optimizer are stored in a form that does not depend on the layout, so a checkpoint loads under another TP, PP
or DP. Under the same layout a resumed run is bit-equal to an unbroken one. Megatron-Core 0.16.1 with torch's Adam gets
there only with care, because stock loading makes a resume wrong without a message:

- a fresh optimizer has no state to describe, so `_fill_state` creates it, before a load and before a save at step 0;
- stock saving cuts each parameter's state out of a buffer at offsets that count the padding between buckets, after the
  padding was taken out: from the second bucket on (tied embeddings under PP, overlapped gradient reduction) it stores
  the wrong numbers; `_padding_kept` leaves the padding in;
- Adam's `step` is handled here alone: stock loading copies it like a parameter, which fails, and then shares one tensor
  among all parameters, so that it advances once per parameter instead of once per update;
- stock saving starts a manager process and forks writers (seconds, and a re-import of the entry script); torch's own
  synchronous writer produces the same format in this process, and reports a full disk to every rank.

Every function with a `model` or `optimizer` argument is collective: all ranks call it with the same arguments.
"""

from __future__ import annotations

import gc
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CONFIG_FNAME, CheckpointingConfig, CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistLoadShardedStrategy,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from torch import nn
from torch.distributed import checkpoint as dcp

from pyrl.learner import checkpoint_store as store
from pyrl.learner.checkpoint_store import CheckpointError, latest_checkpoint, read_trainer_state

__all__ = ["CheckpointError", "latest_checkpoint", "load_checkpoint", "read_trainer_state", "save_checkpoint"]

T = TypeVar("T")

_BACKEND, _BACKEND_VERSION = "torch_dist", 1
_RNG = "rng"


def save_checkpoint(
    root: Path | str,
    step: int,
    *,
    model: nn.Module | list[nn.Module],
    optimizer: MegatronOptimizer,
    trainer_state: dict[str, Any],
    keep_last: int,
) -> Path:
    """Write `root/step_000123` and drop all but the newest `keep_last`; returns the new folder.

    `model`: a `GPTModel`, wrapped by DDP or not, or the list of this rank's pipeline chunks. `trainer_state`: what JSON
    can hold and give back unchanged; rank 0's is stored. For a while the disk holds keep_last + 1 checkpoints.

    Raises CheckpointError on every rank if any rank fails (a full disk, say): the unfinished folder is removed and
    earlier checkpoints are untouched.
    """
    root = Path(root)
    if step < 0 or keep_last < 1:
        raise CheckpointError(f"step {step} must be at least 0 and keep_last {keep_last} at least 1")
    encoded_state = store.encode_trainer_state(trainer_state)
    sharded, common = _state_to_save(model, optimizer)
    writing: Path | None = None
    try:
        writing = _everywhere(lambda: store.begin(root, step) if _rank() == 0 else None)[0]
        _write_shards(sharded, writing)
        records = _everywhere(lambda: _write_common(writing, common, encoded_state))
        files = {name: record for of_rank in records for name, record in of_rank.items()}
        manifest = store.Manifest(step, _layout(optimizer), files)
        published = _everywhere(lambda: store.publish(writing, root, manifest, keep_last) if _rank() == 0 else None)
    except CheckpointError as error:  # on every rank; all wait for the removal, since the first to leave ends the job
        _everywhere(lambda: store.abandon(writing) if _rank() == 0 and writing else None)
        raise CheckpointError(_not_saved(root, step, error)) from error
    return published[0]


@torch.no_grad()
def load_checkpoint(
    folder: Path | str, *, model: nn.Module | list[nn.Module], optimizer: MegatronOptimizer
) -> dict[str, Any]:
    """Fill model, optimizer and random generators from a checkpoint folder; returns the trainer state.

    Every file is compared with the manifest first (size and SHA-256, the hashing shared among ranks). The optimizer
    gets the learning rate and the other settings that were saved. The layout may differ from the one that saved; random
    generators are restored only under the same layout, since their state belongs to a rank.

    Raises CheckpointError on every rank: a file missing, truncated or altered; another kind of optimizer;
    another model (only then is the learner changed, and not to be used any more).
    """
    folder = Path(folder)
    _everywhere(lambda: _check_folder(folder, optimizer))
    state = _sharded_state(model, optimizer, is_loading=True)
    strategy = TorchDistLoadShardedStrategy()
    if _data_parallel_group().size() > 1:
        strategy = FullyParallelLoadStrategyWrapper(strategy, _data_parallel_group())
    try:
        loaded = dist_checkpointing.load(state, str(folder), strategy, strict=StrictHandling.RAISE_ALL)
    except (CheckpointingException, dcp.CheckpointException) as error:
        raise CheckpointError(
            f"checkpoint {folder} does not fit this model and optimizer: {_first_failure(error)}"
        ) from error
    for name, chunk in _chunks(model):
        chunk.load_state_dict(loaded[name])
    _load_optimizer(optimizer, loaded["optimizer"])
    _restore_rng(loaded[_RNG])
    return read_trainer_state(folder)


def _state_to_save(
    model: nn.Module | list[nn.Module], optimizer: MegatronOptimizer
) -> tuple[ShardedStateDict, dict[str, Any]]:
    """What the ranks share out among them, and the small rest that rank 0 writes."""
    with torch.no_grad():
        sharded, common = save_preprocess(_sharded_state(model, optimizer, is_loading=False))
    if _data_parallel_group().size() > 1:  # replicas share the writing
        sharer = FullyParallelSaveStrategyWrapper(
            TorchDistSaveShardedStrategy(_BACKEND, _BACKEND_VERSION), _data_parallel_group()
        )
        sharer.apply_saving_parallelization(sharded)
    states: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(states, _rng_state())
    common[_RNG] = {"layout": _rank_layout(), "states": states}
    return sharded, common


def _sharded_state(
    model: nn.Module | list[nn.Module], optimizer: MegatronOptimizer, *, is_loading: bool
) -> ShardedStateDict:
    metadata = {
        "distrib_optim_sharding_type": "fully_reshardable",
        "chained_optim_avoid_prefix": True,
        "singleton_local_shards": False,
        "dp_cp_group": _data_parallel_group(),
    }
    _fill_state(optimizer)
    state: ShardedStateDict = {name: chunk.sharded_state_dict(metadata=metadata) for name, chunk in _chunks(model)}
    with _padding_kept(optimizer), _short_collection():
        state["optimizer"] = optimizer.sharded_state_dict(dict(state), is_loading=is_loading, metadata=metadata)
    return state


def _chunks(model: nn.Module | list[nn.Module]) -> list[tuple[str, nn.Module]]:
    """The bare `GPTModel` of each pipeline chunk, with the name Megatron's optimizer expects."""
    chunks = list(model) if isinstance(model, (list, tuple, nn.ModuleList)) else [model]
    bare = []
    for chunk in chunks:
        while hasattr(chunk, "module"):  # DDP and Float16Module
            chunk = chunk.module
        bare.append(chunk)
    return [("model" if len(bare) == 1 else f"model{i}", chunk) for i, chunk in enumerate(bare)]


def _write_shards(sharded: ShardedStateDict, folder: Path) -> None:
    by_key, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, keep_only_main_replica=True)
    try:
        dcp.save(
            mcore_to_pyt_state_dict(by_key),
            storage_writer=dcp.FileSystemWriter(folder, sync_files=True, thread_count=1),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )
    except dcp.CheckpointException as error:  # raised on every rank
        raise CheckpointError(_first_failure(error)) from error


def _write_common(folder: Path, common: dict[str, Any], trainer_state: bytes) -> dict[str, store.FileRecord]:
    """Write rank 0's files; returns the records of all that this rank wrote."""
    mine = [f.name for f in folder.glob(f"__{_rank()}_*")]
    if _rank() == 0:
        buffer = io.BytesIO()
        torch.save(common, buffer)
        config = CheckpointingConfig(_BACKEND, _BACKEND_VERSION)
        small_files = {
            COMMON_STATE_FNAME: buffer.getvalue(),
            CONFIG_FNAME: json.dumps(asdict(config)).encode(),
            store.TRAINER_STATE: trainer_state,
        }
        for name, content in small_files.items():
            store.write_synced(folder / name, content)
        mine += [*small_files, ".metadata"]
    return {name: store.hash_file(folder / name) for name in sorted(mine)}


def _check_folder(folder: Path, optimizer: MegatronOptimizer) -> None:
    manifest = store.read_manifest(folder)
    store.verify(folder, manifest, names=sorted(manifest.files)[_rank() :: dist.get_world_size()])
    for field in ("distributed_optimizer", "main_params"):
        saved, wanted = manifest.layout[field], _layout(optimizer)[field]
        if saved != wanted:
            setting = {"distributed_optimizer": "parallel.distributed_optimizer", "main_params": "model.dtype"}[field]
            raise CheckpointError(
                f"checkpoint {folder} was saved with {field} {saved!r}, this run has {wanted!r}: set {setting} as it "
                "was"
            )


# Optimizer state


def _parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    """The members of a ChainedOptimizer that own parameters."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    for part in parts:
        if not isinstance(part.optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            raise CheckpointError(
                f"optimizer {type(part.optimizer).__module__}.{type(part.optimizer).__name__}: checkpoints support "
                "torch's Adam and AdamW; Megatron-Core prefers Transformer Engine's or Apex's when they are installed"
            )
    return parts


def _parameter_states(part: MegatronOptimizer) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    for group in part.optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter, part.optimizer.state[parameter]


def _fill_state(optimizer: MegatronOptimizer) -> None:
    """Create the state that Adam itself would create at its first step, where it is missing."""
    for part in _parts(optimizer):
        for parameter, state in _parameter_states(part):
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


@contextmanager
def _short_collection() -> Iterator[None]:
    """Megatron collects garbage here, which walks every object of the process: half the time of a small save."""
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _padding_kept(optimizer: MegatronOptimizer) -> Iterator[None]:
    """Let buffers and buckets call their padding data, so that stock offsets fit (Megatron-LM pull request 5077)."""
    buffers = [b for part in _parts(optimizer) if isinstance(part, DistributedOptimizer) for b in part.buffers]
    lengths = [(owner, owner.numel_unpadded) for buffer in buffers for owner in (buffer, *buffer.buckets)]
    try:
        for buffer in buffers:
            buffer.numel_unpadded = buffer.numel
            for bucket in buffer.buckets:
                bucket.numel_unpadded = bucket.grad_data.numel()
        yield
    finally:
        for owner, length in lengths:
            owner.numel_unpadded = length


def _load_optimizer(optimizer: MegatronOptimizer, loaded: dict[Any, Any]) -> None:
    parts = _parts(optimizer)
    states = [loaded] if len(parts) == 1 else [loaded[i] for i in range(len(parts))]
    for part, state in zip(parts, states, strict=True):
        if isinstance(part, DistributedOptimizer):
            step = _load_distributed(part, state)
        else:
            step = _load_plain(part, state)
        for _, parameter_state in _parameter_states(part):
            parameter_state["step"] = torch.tensor(step)  # a tensor of its own


def _load_distributed(part: DistributedOptimizer, state: dict[str, Any]) -> float:
    """Returns Adam's update count, which this optimizer keeps in its parameter groups."""
    parameters = state.pop("param_state")
    part.load_state_dict(state)
    for _, parameter_state in _parameter_states(part):
        parameter_state.pop("step")  # the stock copy takes every key for a tensor of the parameter's size
    part.load_parameter_state_from_fully_reshardable(parameters)
    steps = [group.pop("step") for group in part.optimizer.param_groups]
    return float(steps[0])


def _load_plain(part: MegatronOptimizer, state: dict[str, Any]) -> float:
    """Returns Adam's update count, which is saved beside the parameters' states, and left out when it is 0."""
    of_parameters = state.get("optimizer", state)["state"]
    step = float(of_parameters.pop("common_step", 0.0))
    for parameter_state in of_parameters.values():
        parameter_state["step"] = torch.tensor(step)
    part.load_state_dict(state)
    return step


def _layout(optimizer: MegatronOptimizer) -> dict[str, Any]:
    parts = _parts(optimizer)
    return {
        **_rank_layout(),
        "distributed_optimizer": any(isinstance(part, DistributedOptimizer) for part in parts),
        "main_params": "fp32 copy" if any(part.config.bf16 or part.config.fp16 for part in parts) else "the model's",
    }


# Random generators


def _rank_layout() -> dict[str, int]:
    return {
        "tp": parallel_state.get_tensor_model_parallel_world_size(),
        "pp": parallel_state.get_pipeline_model_parallel_world_size(),
        "world_size": dist.get_world_size(),
    }


def _rng_state() -> dict[str, Any]:
    state = {"cpu": torch.get_rng_state(), "model_parallel": get_cuda_rng_tracker().get_states()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_rng(saved: dict[str, Any]) -> None:
    if saved["layout"] != _rank_layout():
        return
    state = saved["states"][_rank()]
    torch.set_rng_state(state["cpu"])
    get_cuda_rng_tracker().set_states(state["model_parallel"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


# Ranks


def _rank() -> int:
    return dist.get_rank()


def _data_parallel_group() -> dist.ProcessGroup:
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def _everywhere(work: Callable[[], T]) -> list[T]:
    """Run `work` on every rank; returns all results, or raises CheckpointError on all ranks if one failed."""
    error: Exception | None = None
    result = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    text = None if error is None else _describe(error)
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, (text, result))
    failures = {rank: failure for rank, (failure, _) in enumerate(outcomes) if failure is not None}
    if failures:
        rank, failure = next(iter(failures.items()))
        raise CheckpointError(f"rank {rank}: {failure}") from error
    return [result for _, result in outcomes]


def _first_failure(error: BaseException) -> str:
    """What went wrong first, without the tracebacks of every rank that torch puts into its text."""
    if not isinstance(error, dcp.CheckpointException):
        return str(error)
    rank, (cause, _) = next(iter(error.failures.items()))
    if not isinstance(cause, Exception):
        raise cause  # KeyboardInterrupt and SystemExit travel wrapped
    return f"rank {rank}: {_describe(cause)}"


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"


def _not_saved(root: Path, step: int, error: CheckpointError) -> str:
    newest = latest_checkpoint(root)
    kept = f"earlier checkpoints are untouched, the newest is {newest}" if newest else "there is no earlier checkpoint"
    nearest = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(nearest).free / 2**20
    return (
        f"checkpoint of step {step} was not saved under {root}: {error}; {kept}. The disk has {free:.0f} MiB free: "
        "make room, lower checkpoint.keep_last, or use another folder."
    )
