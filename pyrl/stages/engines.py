"""The rollout engines as the trainer sees them: started or given, synced with the learner, verified, asked to generate.

The first rank of each node that has leaders starts servers there and feeds them weights; each replica's leader
generates on servers of its own node (`assignment`). The servers load their model while the learner loads its own.

Ranks wait for one another's servers and rollouts in `Parallel.barrier`, under deadlines of their own: a rollout may
take longer than any collective.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch

from pyrl.config import ConfigError, RunConfig
from pyrl.data.packing import pack
from pyrl.learner.learner import Learner
from pyrl.learner.parallel import Parallel
from pyrl.ops.counter import derive_seed, mix
from pyrl.rollout.client import GenerateRequest, GroupResult, RolloutClient
from pyrl.rollout.control import EngineControl
from pyrl.rollout.open_files import open_requests
from pyrl.rollout.server import ServerPool
from pyrl.stages.assignment import Nodes, is_first_of_node, node_of_this_rank, own_share
from pyrl.stages.exchange import gather_from_every_rank, wait_for_leaders
from pyrl.types import Prompt, RolloutGroup, Sequence
from pyrl.weights import verify
from pyrl.weights.families import hf_metadata
from pyrl.weights.transfer import ShmWeightTransfer, WeightTransfer

log = logging.getLogger("pyrl")

MAX_RESTORES = 3
"""Times that servers are given their weights again within one rollout; what fails then is dropped."""


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """What one leader generates."""

    prompts: list[tuple[int, Prompt]]
    """(number within the step over all ranks and refills, prompt)"""
    samples: int
    step: int
    policy_version: int
    purpose: Literal["train", "validation"]


def request_seed(run_seed: int, step: int, prompt: int, purpose: str) -> int:
    """The seed of one prompt's first sample, in [0, 2^62): with a sample's index added it fits vLLM's signed 64 bits.

    `prompt` numbers the prompts of a step over all ranks and refills; `purpose` separates training from validation.
    """
    return mix(derive_seed(run_seed, step=step, mini_batch=0, purpose=f"sampling_{purpose}"), prompt) >> 2


class Engines:
    """A context manager: what it started is stopped on exit. All its methods are collective."""

    def __init__(self, config: RunConfig, parallel: Parallel, stop_token_id: int, pool: ServerPool | None) -> None:
        """Use `start`. `pool`: the servers this rank watches over, None on ranks that do not."""
        self._config = config
        self._parallel = parallel
        self._stop_token_id = stop_token_id
        self._pool = pool
        self._owns_pool = False
        self._learner: Learner | None = None
        self._transfer: WeightTransfer | None = None
        self._client: RolloutClient | None = None

    @classmethod
    def start(
        cls, config: RunConfig, parallel: Parallel, folder: Path, stop_token_id: int, servers: ServerPool | None
    ) -> Self:
        """Launch this node's servers unless `servers` or `rollout.urls` are given; returns before they are ready.

        `assignment.check_servers` has been asked before. Raises ConfigError for `servers` and several ranks.
        """
        if servers is not None and parallel.world_size > 1:
            raise ConfigError("servers that already run in this process cannot be shared by several ranks")
        engines = cls(config, parallel, stop_token_id, servers)
        if servers is None and not config.rollout.urls and is_first_of_node():
            nodes, node = Nodes.of(parallel), node_of_this_rank()
            if nodes.leaders_on(node):
                named = node if nodes.count > 1 else None
                engines._pool = ServerPool.start(config, config.model.path, folder, node=named)
                engines._owns_pool = True
            else:
                log.warning(
                    "node %d leads no replica, so no vLLM server is started there: give rollout.urls to use it for "
                    "rollouts", node
                )  # fmt: skip
        return engines

    def connect(self, learner: Learner) -> None:
        """Wait for the servers and open the ways to them."""
        parallel, rollout = self._parallel, self._config.rollout
        urls = self._pool.wait_ready() if self._pool is not None else ()
        parallel.barrier.wait(
            "the first rank of each node to start its vLLM servers",
            seconds=rollout.startup_timeout_seconds,
            setting="rollout.startup_timeout_seconds",
        )
        node, nodes = node_of_this_rank(), Nodes.of(parallel)
        started = gather_from_every_rank((node, urls), parallel)
        everywhere = list(dict.fromkeys(rollout.urls or [url for _, found in started for url in found]))
        self._learner = learner
        self._transfer = self._open_transfer(learner, everywhere)
        if parallel.is_leader:
            on_node = [url for its, found in started if its == node for url in found]
            servers, leaders = (everywhere, range(nodes.dp)) if rollout.urls else (on_node, nodes.leaders_on(node))
            self._client = self._open_client(own_share(servers, leaders, parallel.dp_rank))

    def sync(self, learner: Learner, *, version: int) -> None:
        """Give every server the learner's weights as policy `version`."""
        if self._transfer is None:
            self.connect(learner)
        self._transfer.sync(learner.hf_weights(), version)

    def verify(self, learner: Learner, probes: list[Prompt], *, version: int) -> None:
        """Stop the run (WeightMismatch) unless engines and learner compute the same log-probs."""
        # A prompt of one token gets a second: the first one's log-prob is not defined.
        ids = [p.token_ids if len(p.token_ids) > 1 else (*p.token_ids, self._stop_token_id) for p in probes]
        sequences = [Sequence(i, tokens[:1], tokens[1:]) for i, tokens in enumerate(ids)]
        batch = pack(sequences, pad_multiple=learner.pad_multiple).to(self._parallel.device)
        scores = learner.score([batch])[0].logprobs[batch.response_mask].tolist()
        tolerance = verify.LOGPROB_TOLERANCE[self._config.model.dtype]
        if self._client is not None:
            ours = _cut(scores, [len(s.response_ids) for s in sequences])
            theirs = verify.probe_logprobs(self._client, ids)
            gap = verify.check_logprobs(theirs, ours, tolerance=tolerance, version=version)
            log.info("engines hold version %d: log-probs agree to %.2g on %d tokens", version, gap, len(scores))
        if self._parallel.device.type == "cuda":
            self._compare_checksums(learner)

    def generate(self, job: GenerationJob) -> list[RolloutGroup]:
        """The groups of this leader's prompts, in order; those that failed are left out. Other ranks get nothing."""
        requests = self._requests(job) if self._client is not None else []
        results = self.draw(requests, step=job.step, policy_version=job.policy_version)
        if not results:
            return []
        return [
            RolloutGroup(prompt, list(result.completions))
            for (_, prompt), result in zip(job.prompts, results, strict=True)
            if result.error is None
        ]

    def wait_for_leaders(self, step: int) -> None:
        """Return when every leader has generated and graded. Collective.

        Other ranks ask the servers that this one watches over, and would wait for one that was given up until it is
        late: raises ServerError then. The job ends with its first rank that fails.
        """
        check = self._pool.raise_if_failed if self._pool is not None else None
        wait_for_leaders(self._parallel, self._config.rollout.timeout_seconds, step, check)

    def draw(self, requests: list[GenerateRequest], *, step: int, policy_version: int) -> list[GroupResult]:
        """The results of this leader's requests, in order; other ranks ask nothing.

        Servers that were restarted and that nobody has given their weights yet get them here, and what they failed is
        asked again.
        """
        results = self._ask(requests, policy_version)
        for _ in range(0 if self._transfer.restores_servers else MAX_RESTORES):
            lost = [i for i, result in enumerate(results) if result.error is not None]
            if not self._restored(step, policy_version, bool(lost)):
                break
            if lost and self._config.deterministic:  # what runs beside what must not depend on what was lost
                lost = list(range(len(results)))
            again = self._ask([requests[i] for i in lost], policy_version)
            for i, result in zip(lost, again, strict=True):
                results[i] = result
        return results

    def _ask(self, requests: list[GenerateRequest], policy_version: int) -> list[GroupResult]:
        if self._client is None or not requests:
            return []
        return self._client.generate(requests, policy_version=policy_version)

    def _requests(self, job: GenerationJob) -> list[GenerateRequest]:
        rollout = self._config.rollout
        return [
            GenerateRequest(
                token_ids=prompt.token_ids,
                samples=job.samples,
                seed=request_seed(self._config.seed, job.step, number, job.purpose),
                max_tokens=rollout.max_response_tokens,
                temperature=rollout.temperature,
                top_p=rollout.top_p,
            )
            for number, prompt in job.prompts
        ]

    def _restored(self, step: int, policy_version: int, failed: bool) -> bool:
        """Whether, after requests of some leader `failed`, a server lacked the policy's weights and holds them now."""
        self.wait_for_leaders(step)
        if not any(gather_from_every_rank(failed, self._parallel)) or self._transfer.all_hold(policy_version):
            return False
        log.warning("a vLLM server was restarted: all are given weights of version %d again", policy_version)
        self._transfer.sync(self._learner.hf_weights(), policy_version)
        return True

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

    def _open_client(self, urls: list[str]) -> RolloutClient:
        rollout = self._config.rollout
        return RolloutClient(
            urls,
            stop_token_ids=[self._stop_token_id],
            request_timeout=rollout.request_timeout_seconds,
            max_retries=rollout.max_retries,
            # Where `generate` restores them, waiting would be in vain.
            recovery_timeout=rollout.startup_timeout_seconds if self._transfer.restores_servers else 0.0,
            timeout=rollout.timeout_seconds,
            deterministic=self._config.deterministic,
            open_requests=open_requests(rollout.max_num_seqs),
            check_servers=self._pool.raise_if_failed if self._pool is not None else None,
        )

    def _open_transfer(self, learner: Learner, everywhere: list[str]) -> WeightTransfer:
        rollout, parallel = self._config.rollout, self._parallel
        options = {
            "timeout": rollout.sync_timeout_seconds,
            "startup_timeout": rollout.startup_timeout_seconds,
            "group": parallel.cpu_group,
            "barrier": parallel.barrier,
        }
        sent_by_rank_zero = everywhere if parallel.rank == 0 else ()
        if rollout.transport == "shm":
            if rollout.urls:
                return ShmWeightTransfer(sent_by_rank_zero, **options)
            return ShmWeightTransfer(self._pool.urls if self._pool is not None else (), pool=self._pool, **options)
        from pyrl.weights.device_transfer import DeviceWeightTransfer  # imports vLLM's CUDA transports

        return DeviceWeightTransfer(
            rollout.transport,
            sent_by_rank_zero,
            metadata=hf_metadata(learner.policy.shape),
            dtype=_engine_dtype(self._config),
            rank=parallel.rank,
            **options,
        )

    def _compare_checksums(self, learner: Learner) -> None:
        """Bit for bit, where the backend keeps the weights as they were sent. By the ranks that send them."""
        controls = [EngineControl(url) for url in self._transfer.urls]
        alone = [control for control in controls if control.world_size() == 1]
        if len(alone) < len(controls):
            log.info("checksums are compared on %d of %d servers: the others hold shards", len(alone), len(controls))
        expected = verify.expected_checksums(learner.hf_weights(), _engine_dtype(self._config), wanted=bool(alone))
        for control in alone:
            verify.check_checksums(control, expected)
        for control in controls:
            control.close()


def _engine_dtype(config: RunConfig) -> torch.dtype:
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[config.model.dtype]


def _cut(values: list[float], lengths: list[int]) -> list[list[float]]:
    parts, start = [], 0
    for length in lengths:
        parts.append(values[start : start + length])
        start += length
    return parts
