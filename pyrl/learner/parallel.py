"""Process groups: torch.distributed and Megatron's tensor, pipeline and data parallel groups."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from pyrl.config import ConfigError, ParallelConfig
from pyrl.learner.barrier import RankBarrier

_opened = itertools.count()
"""Numbers the barriers of this process, the same on every rank."""


@dataclass(frozen=True)
class Parallel:
    """Where this rank stands. Ranks are laid out tp fastest, then dp, then pp.

    A replica (model-parallel group) is the tp x pp ranks that hold one copy of the model.
    """

    rank: int
    world_size: int
    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    dp_rank: int
    dp_size: int
    device: torch.device
    timeout: timedelta
    """Deadline of every collective of these groups."""
    tp_group: dist.ProcessGroup
    pp_group: dist.ProcessGroup
    dp_group: dist.ProcessGroup
    model_parallel_group: dist.ProcessGroup
    cpu_group: dist.ProcessGroup
    """Every rank, over gloo: for objects and CPU tensors."""
    barrier: RankBarrier
    """Every rank: for waits that may outlast `timeout`."""

    @property
    def is_leader(self) -> bool:
        """The rank that generates for its replica."""
        return self.tp_rank == 0 and self.pp_rank == 0

    @property
    def is_first_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    @property
    def last_stage_rank(self) -> int:
        """Global rank of the last pipeline stage with this tp and dp rank."""
        return dist.get_process_group_ranks(self.pp_group)[-1]


def init_parallel(config: ParallelConfig) -> Parallel:
    """Join the job: gloo on CPU, nccl on CUDA, from torchrun's environment, or alone where there is none.

    A default process group that exists already is used as it is.

    Raises ConfigError where the world size does not divide by tp * pp.
    """
    world_size = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    model_size = config.tp * config.pp
    if world_size % model_size:
        raise ConfigError(
            f"world size {world_size} is not divisible by parallel.tp {config.tp} x parallel.pp {config.pp} = "
            f"{model_size}: start a multiple of {model_size} processes, or change parallel.tp and parallel.pp"
        )
    timeout = timedelta(seconds=config.timeout_seconds)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = _choose_device()
    _init_distributed(device, timeout)
    return _build_groups(config, device, timeout)


def destroy_parallel() -> None:
    """Leave the job: the reverse of `init_parallel`."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def _choose_device() -> torch.device:
    if torch.cuda.is_available():
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # Megatron orders kernels with it under tp > 1
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    from pyrl.learner import cpu_backend

    cpu_backend.install()
    return torch.device("cpu")


def _init_distributed(device: torch.device, timeout: timedelta) -> None:
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    device_id = device if device.type == "cuda" else None
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=timeout, device_id=device_id)
    else:
        store = dist.HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout, device_id=device_id)


def _build_groups(config: ParallelConfig, device: torch.device, timeout: timedelta) -> Parallel:
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.tp,
        pipeline_model_parallel_size=config.pp,
        distributed_timeout_minutes=timeout.total_seconds() / 60,
    )
    # Nothing draws from it (dropout is 0 and weights are loaded), but sequence parallelism wants its state to exist.
    tensor_parallel.model_parallel_cuda_manual_seed(0)
    on_cpu = device.type == "cpu"
    return Parallel(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        tp_size=config.tp,
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pp_size=config.pp,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=parallel_state.get_data_parallel_world_size(),
        device=device,
        timeout=timeout,
        tp_group=parallel_state.get_tensor_model_parallel_group(),
        pp_group=parallel_state.get_pipeline_model_parallel_group(),
        dp_group=parallel_state.get_data_parallel_group(),
        model_parallel_group=parallel_state.get_model_parallel_group(),
        cpu_group=dist.group.WORLD if on_cpu else dist.new_group(backend="gloo", timeout=timeout),
        barrier=_open_barrier(),
    )


def _open_barrier() -> RankBarrier:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if world_size == 1:
        return RankBarrier(None, rank, world_size)
    store = dist.distributed_c10d._get_default_store()
    # A job may be left and joined again over one store.
    return RankBarrier(dist.PrefixStore(f"pyrl/barrier/{next(_opened)}", store), rank, world_size)
