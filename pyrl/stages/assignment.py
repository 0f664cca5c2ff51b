"""Which vLLM servers a rank asks, and whether the servers of a run can serve it.

Servers that pyrl starts listen on the loopback interface: the leaders of a node share the servers of that node. Servers
given as URLs are shared by all leaders. Everything here follows from torchrun's environment and the layout, so every
rank knows it before a server is started.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pyrl.config import ConfigError, RunConfig
from pyrl.learner.parallel import Parallel
from pyrl.rollout.shared_folder import SHARED_MEMORY, free_bytes
from pyrl.rollout.vllm_adapter import CPU_HEAD_DIMS, HEAD_DIM_IGNORED
from pyrl.weights.families import ModelShape, hf_metadata


@dataclass(frozen=True, slots=True)
class Nodes:
    """Where the leaders are: torchrun numbers ranks node after node, and the ranks of the first pipeline stage, which
    hold the leaders, come first, tensor-parallel ranks fastest."""

    count: int
    ranks_per_node: int
    tp: int
    dp: int

    @classmethod
    def of(cls, parallel: Parallel) -> Nodes:
        """Raises ConfigError where the nodes run different numbers of ranks."""
        ranks_per_node = int(os.environ.get("LOCAL_WORLD_SIZE", parallel.world_size))
        if parallel.rank != node_of_this_rank() * ranks_per_node + int(os.environ.get("LOCAL_RANK", parallel.rank)):
            raise ConfigError(
                f"rank {parallel.rank} is not where it would be with {ranks_per_node} ranks on every node: start "
                "equally many on each (torchrun --nproc-per-node)"
            )
        return cls(parallel.world_size // ranks_per_node, ranks_per_node, parallel.tp_size, parallel.dp_size)

    def leaders_on(self, node: int) -> list[int]:
        """Data-parallel ranks of the leaders on a node."""
        return [dp for dp in range(self.dp) if dp * self.tp // self.ranks_per_node == node]


def node_of_this_rank() -> int:
    """torchrun's number of this node."""
    return int(os.environ.get("GROUP_RANK", "0"))


def is_first_of_node() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def own_share(servers: Sequence[str], leaders: Sequence[int], dp_rank: int) -> list[str]:
    """The servers that one of the `leaders` which share `servers` asks. None is left idle, and where there are enough,
    none is asked by two."""
    place = leaders.index(dp_rank)
    return list(servers[place % len(servers) :: len(leaders)])


def check_servers(config: RunConfig, parallel: Parallel) -> None:
    """Raises ConfigError where the servers of this run could not serve it."""
    nodes, rollout = Nodes.of(parallel), config.rollout
    if rollout.urls:
        _check_shares(config, "rollout.urls", len(set(rollout.urls)), nodes.dp, "give as many")
        return
    if rollout.transport != "shm" and nodes.count > 1:
        raise ConfigError(
            f"rollout.transport {rollout.transport} with {nodes.count} nodes: rank 0 sends the weights to every "
            "server, but those that pyrl starts are reached from their own node alone. Start vLLM servers that listen "
            "on addresses rank 0 can reach, and give them as rollout.urls"
        )
    for node in range(nodes.count):
        where = f"rollout.servers_per_node on node {node}"
        _check_shares(config, where, rollout.servers_per_node, len(nodes.leaders_on(node)), "raise it")


def check_shared_memory(config: RunConfig, parallel: Parallel, shape: ModelShape, dtype: torch.dtype) -> None:
    """Raises ConfigError, on a rank that would send weights through shared memory, where they would not fit there.

    The old weights stay until every server has the new ones, so it must hold both.
    """
    sends = parallel.rank == 0 if config.rollout.urls else _starts_servers(parallel)
    if config.rollout.transport != "shm" or not sends:
        return
    free = free_bytes()
    if free is None:
        raise ConfigError(
            f"{SHARED_MEMORY} on {socket.gethostname()} is not there or cannot be written, and rollout.transport shm "
            "sends the weights through it: mount a tmpfs there (docker: --shm-size=2g)"
        )
    wanted = 2 * dtype.itemsize * sum(math.prod(size) for _, size in hf_metadata(shape))
    if free < wanted:
        raise ConfigError(
            f"{SHARED_MEMORY} on {socket.gethostname()} has {free / 2**20:.0f} MiB free, and rollout.transport shm "
            f"needs {wanted / 2**20:.0f} MiB there, for the old and the new weights of model.path {config.model.path}: "
            "enlarge it (mount -o remount,size=...; docker: --shm-size)"
        )


def _starts_servers(parallel: Parallel) -> bool:
    return is_first_of_node() and bool(Nodes.of(parallel).leaders_on(node_of_this_rank()))


def check_head_dim(config: RunConfig, parallel: Parallel, shape: ModelShape) -> None:
    """Raises ConfigError for a model that vLLM servers of this run could not load, or would load but could not run."""
    head_dim = shape.head_dim
    if shape.family in HEAD_DIM_IGNORED and head_dim * shape.num_heads != shape.hidden_size:
        raise ConfigError(
            f"model.path {config.model.path}: config.json sets head_dim {head_dim}, but vLLM's {shape.family} ignores "
            f"it and divides hidden_size {shape.hidden_size} by {shape.num_heads} heads. Use a model where both agree"
        )
    if config.rollout.urls or parallel.device.type != "cpu" or head_dim in CPU_HEAD_DIMS:
        return
    raise ConfigError(
        f"model.path {config.model.path}: vLLM has no CPU attention for its head dimension, {head_dim}; it has for "
        f"{', '.join(map(str, CPU_HEAD_DIMS))}. Use a model with one of those, or a GPU"
    )


def check_length(config: RunConfig, max_positions: int) -> None:
    """Raises ConfigError where the longest prompt with the longest response exceeds the model's positions."""
    prompt, response = config.data.max_prompt_tokens, config.rollout.max_response_tokens
    if prompt + response > max_positions:
        raise ConfigError(
            f"data.max_prompt_tokens {prompt} + rollout.max_response_tokens {response} = {prompt + response} tokens "
            f"exceed the {max_positions} positions of model.path {config.model.path}: lower one of them"
        )


def _check_shares(config: RunConfig, where: str, servers: int, leaders: int, remedy: str) -> None:
    if config.deterministic and servers < leaders:
        raise ConfigError(
            f"deterministic: {leaders} data-parallel replicas share {servers} servers ({where}); each needs one of its "
            f"own: {remedy}"
        )
