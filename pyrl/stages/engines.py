"""The rollout engines as the trainer sees them: started or given, synced with the learner, verified, asked to generate.

Each node's first rank starts the servers of its node and feeds them weights; each replica's leader generates on servers
its own node. The servers load their model while the learner loads its own.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch

from pyrl.config import ConfigError, RunConfig
from pyrl.data.packing import pack
from pyrl.learner.learner import Learner
from pyrl.learner.parallel import Parallel
from pyrl.rollout.client import GenerateRequest, RolloutClient, request_seed
from pyrl.rollout.control import EngineControl
from pyrl.rollout.server import ServerPool
from pyrl.stages.exchange import gather_from_every_rank
from pyrl.types import Prompt, RolloutGroup, Sequence
from pyrl.weights import verify
from pyrl.weights.families import hf_metadata
from pyrl.weights.transfer import ShmWeightTransfer, WeightTransfer

log = logging.getLogger("pyrl")

PURPOSES = {"train": 0, "validation": 1}


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """What one leader generates."""

    prompts: list[tuple[int, Prompt]]
    """(number within the step over all ranks and refills, prompt)"""
    samples: int
    step: int
    policy_version: int
    purpose: Literal["train", "validation"]


class Engines:
    """A context manager: what it started is stopped on exit. `sync`, `verify` and `close` are collective."""

    def __init__(self, config: RunConfig, parallel: Parallel, stop_token_id: int, pool: ServerPool | None) -> None:
        """Use `start`. `pool`: the servers this rank watches over, None on ranks that do not."""
        self._config = config
        self._parallel = parallel
        self._stop_token_id = stop_token_id
        self._pool = pool
        self._owns_pool = False
        self._transfer: WeightTransfer | None = None
        self._client: RolloutClient | None = None

    @classmethod
    def start(
        cls, config: RunConfig, parallel: Parallel, folder: Path, stop_token_id: int, servers: ServerPool | None
    ) -> Self:
        """Launch this node's servers unless `servers` or `rollout.urls` are given; returns before they are ready."""
        if servers is not None and parallel.world_size > 1:
            raise ConfigError("servers that already run in this process cannot be shared by several ranks")
        engines = cls(config, parallel, stop_token_id, servers)
        if servers is None and not config.rollout.urls and _is_first_of_node():
            engines._pool = ServerPool.start(config, config.model.path, folder)
            engines._owns_pool = True
        return engines

    def connect(self, learner: Learner) -> None:
        """Wait for the servers and open the ways to them. Collective."""
        urls = self._config.rollout.urls or (self._pool.wait_ready() if self._pool is not None else ())
        nodes = gather_from_every_rank((_node(), urls), self._parallel)
        on_node = [url for node, found in nodes if node == _node() or self._config.rollout.urls for url in found]
        reachable = list(dict.fromkeys(on_node))
        everywhere = list(dict.fromkeys(url for _, found in nodes for url in found))
        if self._config.deterministic and len(everywhere) < self._parallel.dp_size:
            raise ConfigError(
                f"deterministic: {self._parallel.dp_size} data-parallel replicas share {len(everywhere)} servers; each "
                "needs one of its own, raise rollout.servers_per_node"
            )
        self._transfer = self._open_transfer(learner, everywhere)
        if self._parallel.is_leader:
            mine = reachable[self._parallel.dp_rank % len(reachable) :: self._parallel.dp_size] or reachable[:1]
            check = self._pool.raise_if_failed if self._pool is not None else None
            self._client = RolloutClient.from_config(self._config, mine, [self._stop_token_id], check)

    def sync(self, learner: Learner, *, version: int) -> None:
        """Give every server the learner's weights as policy `version`. Collective."""
        if self._transfer is None:
            self.connect(learner)
        self._transfer.sync(learner.hf_weights(), version)
        if self._pool is not None:
            self._pool.mark_synced()

    def verify(self, learner: Learner, probes: list[Prompt], *, version: int) -> None:
        """Stop the run (WeightMismatch) unless engines and learner compute the same log-probs. Collective."""
        ids = [p.token_ids for p in probes if len(p.token_ids) > 1]
        sequences = [Sequence(i, tokens[:1], tokens[1:]) for i, tokens in enumerate(ids)]
        batch = pack(sequences, pad_multiple=learner.pad_multiple).to(self._parallel.device)
        scores = learner.score([batch])[0].logprobs[batch.response_mask].tolist()
        tolerance = verify.LOGPROB_TOLERANCE[self._config.model.dtype]
        if self._client is not None:
            ours = _cut(scores, [len(s.response_ids) for s in sequences])
            theirs = verify.probe_logprobs(self._client, ids)
            gap = verify.check_logprobs(theirs, ours, tolerance=tolerance, version=version)
            log.info("engines hold version %d: log-probs agree to %.2g on %d tokens", version, gap, len(scores))
        if self._parallel.device.type == "cuda" and self._config.rollout.tp == 1:
            self._compare_checksums(learner)

    def generate(self, job: GenerationJob) -> list[RolloutGroup]:
        """The groups of this leader's prompts, in order; those that failed are left out. Other ranks get nothing."""
        if self._client is None:
            return []
        rollout, purpose = self._config.rollout, PURPOSES[job.purpose]
        requests = [
            GenerateRequest(
                token_ids=prompt.token_ids,
                samples=job.samples,
                seed=request_seed(self._config.seed, job.step, number, purpose),
                max_tokens=rollout.max_response_tokens,
                temperature=rollout.temperature,
                top_p=rollout.top_p,
            )
            for number, prompt in job.prompts
        ]
        results = self._client.generate(requests, policy_version=job.policy_version)
        return [
            RolloutGroup(prompt, list(result.completions))
            for (_, prompt), result in zip(job.prompts, results, strict=True)
            if result.error is None
        ]

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._transfer is not None:
            self._transfer.close()
        if self._pool is not None and self._owns_pool:
            self._pool.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_transfer(self, learner: Learner, everywhere: list[str]) -> WeightTransfer:
        rollout, parallel = self._config.rollout, self._parallel
        deadline = parallel.timeout.total_seconds()
        if rollout.transport == "shm":
            if rollout.urls:
                return ShmWeightTransfer(rollout.urls if parallel.rank == 0 else (), timeout=deadline,
                                         group=parallel.cpu_group)  # fmt: skip
            urls = self._pool.urls if self._pool is not None else ()
            return ShmWeightTransfer(urls, pool=self._pool, timeout=deadline, group=parallel.cpu_group)
        from pyrl.weights.device_transfer import DeviceWeightTransfer  # imports vLLM's CUDA transports

        return DeviceWeightTransfer(
            rollout.transport,
            everywhere if parallel.rank == 0 else (),
            metadata=hf_metadata(learner.policy.shape),
            dtype=_engine_dtype(self._config),
            rank=parallel.rank,
            timeout=deadline,
            group=parallel.cpu_group,
        )

    def _compare_checksums(self, learner: Learner) -> None:
        """Bit for bit, where the backend keeps the weights as they were sent."""
        expected = verify.expected_checksums(learner.hf_weights(), _engine_dtype(self._config))
        for url in self._pool.urls if self._pool is not None else ():
            control = EngineControl(url)
            verify.check_checksums(control, expected)
            control.close()


def _engine_dtype(config: RunConfig) -> torch.dtype:
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[config.model.dtype]


def _is_first_of_node() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _node() -> str:
    """torchrun's number of this node."""
    return os.environ.get("GROUP_RANK", "0")


def _cut(values: list[float], lengths: list[int]) -> list[list[float]]:
    parts, start = [], 0
    for length in lengths:
        parts.append(values[start : start + length])
        start += length
    return parts
