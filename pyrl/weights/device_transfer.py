"""Transports `ipc` and `nccl`: vLLM's own trainer-side engines behind `transfer.WeightTransfer`.

Written from vLLM 0.32.0's source (`distributed/weight_transfer/{base,ipc_engine,nccl_engine}.py`). vLLM's engines
drive start, update and finish through a client object, but neither pause nor know a policy version: `_FanOut` adds the
version and speaks to all servers at once, `sync` pauses around it.

vLLM's ipc engine gathers handles over the default process group, so `group` must span all ranks, and its rank 0 is the
sender in both transports.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
from vllm.distributed.weight_transfer import ParamMeta, WeightSource, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.clients import _json_safe_update_payload
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from pyrl.rollout.control import EngineControl
from pyrl.weights.transfer import NamedTensors, WeightTransfer, paused


class _Source(WeightSource):
    """What vLLM's trainer engine reads; holds the tensors of one sync."""

    def __init__(self, metadata: Sequence[tuple[str, tuple[int, ...]]], dtype: torch.dtype) -> None:
        self._metadata = [ParamMeta(name, dtype, tuple(shape)) for name, shape in metadata]
        self._dtype = dtype
        self._tensors: NamedTensors | None = None

    def metadata(self) -> list[ParamMeta]:
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        if self._tensors is None:
            raise RuntimeError("vLLM's engine read the weights twice in one sync")
        tensors, self._tensors = self._tensors, None
        for name, tensor in tensors:
            yield name, tensor.detach().to(self._dtype)

    @contextlib.contextmanager
    def holding(self, tensors: NamedTensors) -> Iterator[None]:
        self._tensors = tensors
        try:
            yield
        finally:
            self._tensors = None


class _FanOut:
    """vLLM's `VLLMWeightSyncClient` over several servers. All are called at once: nccl needs them to meet."""

    def __init__(
        self, controls: list[EngineControl], seconds_left: Callable[[], float], init_of: Callable[[int, dict], dict]
    ) -> None:
        """`seconds_left()`: the time that a call may take. `init_of(i, info)`: the init info of server i, from the one
        vLLM's trainer engine made for a lone server."""
        self._controls = controls
        self._seconds_left = seconds_left
        self._init_of = init_of
        self.version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._all(lambda i, control: control.init_transfer(self._init_of(i, init_info)))

    def start_weight_update(self) -> None:
        self._all(lambda _, control: control.start_update())

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        payload = _json_safe_update_payload(update_info)
        self._all(lambda _, control: control.update(payload, timeout=self._seconds_left()))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all(lambda _, control: control.finish_update(self.version, timeout=self._seconds_left()))

    def _all(self, call: Callable[[int, EngineControl], None]) -> None:
        with ThreadPoolExecutor(max_workers=len(self._controls)) as threads:
            for done in [threads.submit(call, i, control) for i, control in enumerate(self._controls)]:
                done.result()


class DeviceWeightTransfer(WeightTransfer):
    """Transports `ipc` and `nccl`. Not run in the CPU tests."""

    def __init__(
        self,
        transport: Literal["ipc", "nccl"],
        urls: Sequence[str],
        *,
        metadata: Sequence[tuple[str, tuple[int, ...]]],
        dtype: torch.dtype,
        rank: int,
        **options: Any,
    ) -> None:
        """`urls`: every server of the run on rank 0, which alone talks to them; empty elsewhere. `metadata`: (name,
        shape) in the order of the tensors (`families.hf_metadata`). `dtype`: what travels, the engines' own.
        `options`: of `WeightTransfer`. Collective: rank 0 and the engines connect here."""
        super().__init__(urls, **options)
        if (rank == 0) != self.is_writer:
            raise ValueError(f"rank {rank} got {len(self._controls)} urls: rank 0 takes all of them, other ranks none")
        self._transport = transport
        self._rank = rank
        self._source = _Source(metadata, dtype)
        self._connect()

    def close(self) -> None:
        self._engine.shutdown()
        super().close()

    def _connect(self) -> None:
        sizes = [control.world_size() for control in self._controls] if self._transport == "nccl" else []

        def init_of(index: int, info: dict[str, Any]) -> dict[str, Any]:
            # In the NCCL group the sender is rank 0 and the workers of all servers follow, server after server.
            return info | {"rank_offset": 1 + sum(sizes[:index])} if self._transport == "nccl" else info

        self._client = _FanOut(self._controls, self._left, init_of)
        if self._transport == "ipc":
            init = IPCTrainerInitInfo(rank=self._rank, packed=True)
        else:
            init = NCCLTrainerInitInfo(
                rank=self._rank,
                master_address=_address_towards(self.urls) if self.is_writer else "",
                master_port=_free_port() if self.is_writer else 0,
                world_size=1 + sum(sizes),
            )
        self._engine = WeightTransferTrainerFactory.trainer_init(init, client=self._client, source=self._source)

    def _reconnect(self) -> None:
        self._engine.shutdown()
        for control in self._controls:
            control.shutdown_transfer()  # those that were not restarted hold their end of the old connection
        self._connect()

    def _sync(self, named_tensors: NamedTensors, version: int) -> None:
        self._client.version = version
        with contextlib.ExitStack() as stack:
            for control in self._controls:
                stack.enter_context(paused(control))
            stack.enter_context(self._source.holding(named_tensors))
            self._engine.send_weights()


def _address_towards(urls: Sequence[str]) -> str:
    """This machine's address as servers see it: the one that a connection to the first remote server leaves from."""
    hosts = [urlsplit(url).hostname for url in urls]
    remote = [host for host in hosts if host not in ("localhost", "127.0.0.1", "::1")]
    family, kind, protocol, _, address = socket.getaddrinfo((remote or hosts)[0], 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing: it only chooses the route
        return probe.getsockname()[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
