"""The wiring of transports ipc and nccl around vLLM's trainer-side engines, which need CUDA: here a stand-in drives the
client as `NCCLTrainerWeightTransferEngine.send_weights` does. What it sends over CUDA is not tested."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

from pyrl.weights import device_transfer
from pyrl.weights.device_transfer import DeviceWeightTransfer
from tests.rollout.fake_vllm import FakeVLLM

METADATA = [("a.weight", (2, 3)), ("b.weight", (4,))]


class Engine:
    def __init__(self, init_info, client, source) -> None:
        self.init_info, self.client, self.source = init_info, client, source
        self.received: list[tuple[str, torch.dtype]] = []
        self.closed = False
        if init_info.rank == 0:
            client.init_weight_transfer_engine({"rank_offset": 1, "packed": True})

    def send_weights(self) -> None:
        meta = self.source.metadata()
        if self.init_info.rank == 0:
            self.client.start_weight_update()
            self.client.update_weights({"names": [m.name for m in meta]})
        self.received += [(name, tensor.dtype) for name, tensor in self.source]
        if self.init_info.rank == 0:
            self.client.finish_weight_update()

    def shutdown(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def trainer_init(init_info, *, client, source):
        return Engine(init_info, client, source)

    monkeypatch.setattr(WeightTransferTrainerFactory, "trainer_init", trainer_init)
    monkeypatch.setattr(device_transfer.EngineControl, "world_size", lambda self: 2, raising=True)


def weights() -> Iterator[tuple[str, torch.Tensor]]:
    for name, shape in METADATA:
        yield name, torch.ones(shape)


def transfer(transport: str, urls: list[str], rank: int = 0) -> DeviceWeightTransfer:
    return DeviceWeightTransfer(transport, urls, metadata=METADATA, dtype=torch.bfloat16, rank=rank)


def test_every_server_is_paused_updated_and_resumed_with_the_version() -> None:
    with FakeVLLM() as one, FakeVLLM() as two, transfer("nccl", [one.url, two.url]) as sender:
        assert sender._engine.init_info.world_size == 1 + 2 * 2
        sender.sync(weights(), version=12)
        for server, offset in ((one, 1), (two, 3)):
            assert server.calls[0][1]["init_info"]["rank_offset"] == offset
            paths = [path for path, _ in server.calls[1:]]
            assert paths == ["/pause", "/start_weight_update", "/update_weights", "/finish_weight_update", "/resume"]
            assert server.version == "12"
        assert sender._engine.received == [(name, torch.bfloat16) for name, _ in METADATA]


@pytest.mark.parametrize("transport", ["ipc", "nccl"])
def test_a_restarted_server_makes_all_meet_anew_before_the_next_sync(transport: str) -> None:
    with FakeVLLM() as one, FakeVLLM() as two, transfer(transport, [one.url, two.url]) as sender:
        sender.sync(weights(), version=3)
        sender.sync(weights(), version=4)
        first = sender._engine
        assert not first.closed and not any("init" in path for path, _ in one.calls[1:])
        two.version = "default"  # what a server that has just started answers
        sender.sync(weights(), version=5)
        assert first.closed and sender._engine is not first and sender._engine.received
        for server in (one, two):
            paths = [path for path, _ in server.calls]
            again = paths.index("/shutdown_weight_transfer_engine")
            assert "/init_weight_transfer_engine" in paths[again:] and server.version == "5"


def test_the_address_for_servers_is_one_they_can_reach() -> None:
    assert device_transfer._address_towards(["http://127.0.0.1:8000", "http://localhost:8001"]) == "127.0.0.1"
    assert device_transfer._address_towards(["http://127.0.0.2:8000"]).startswith("127.")


def test_ranks_that_do_not_send_read_along() -> None:
    with transfer("ipc", [], rank=1) as reader:
        reader.sync(weights(), version=1)
        assert [name for name, _ in reader._engine.received] == ["a.weight", "b.weight"]


def test_rank_zero_alone_takes_urls() -> None:
    with pytest.raises(ValueError, match="rank 1 got 1 urls"):
        transfer("ipc", ["http://127.0.0.1:9"], rank=1)
