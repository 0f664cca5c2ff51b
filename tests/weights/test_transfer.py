"""The shm transport's sender: order of the calls, files, several ranks, failures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from pyrl.weights import transfer as module
from pyrl.weights.transfer import ShmWeightTransfer, WeightSyncError
from tests.ops.gloo import run_on_ranks
from tests.rollout.fake_vllm import FakeVLLM

WEIGHTS = {"a.weight": torch.arange(12.0).reshape(3, 4).T, "b.weight": torch.ones(5), "c.bias": torch.zeros(2)}


@pytest.fixture
def fake() -> Iterator[FakeVLLM]:
    with FakeVLLM(version="default") as server:
        yield server


def updates(fake: FakeVLLM) -> list[dict]:
    return [body["update_info"] for path, body in fake.calls if path == "/update_weights"]


def test_sync_is_pause_start_update_finish_resume(fake: FakeVLLM, tmp_path: Path) -> None:
    with ShmWeightTransfer([fake.url], folder=tmp_path) as transfer:
        transfer.sync(WEIGHTS.items(), version=7)
        assert [path for path, _ in fake.calls] == [
            "/init_weight_transfer_engine", "/pause", "/start_weight_update", "/update_weights",
            "/finish_weight_update", "/resume",
        ]  # fmt: skip
        (update,) = updates(fake)
        assert update["names"] == list(WEIGHTS) and update["last"] is True and fake.version == "7"
        held = load_file(update["path"])
        assert all(torch.equal(held[name], tensor) for name, tensor in WEIGHTS.items())
        transfer.sync(WEIGHTS.items(), version=8)
        assert len(list(tmp_path.iterdir())) == 1  # only the newest version is kept, for restarted servers
    assert list(tmp_path.iterdir()) == []


def test_the_iterator_may_reuse_its_memory(fake: FakeVLLM, tmp_path: Path) -> None:
    def reusing() -> Iterator[tuple[str, torch.Tensor]]:
        buffer = torch.empty(3)
        for i in range(4):
            yield f"w{i}", buffer.fill_(i)

    with ShmWeightTransfer([fake.url], folder=tmp_path) as transfer:
        transfer.sync(reusing(), version=1)
        held = load_file(updates(fake)[0]["path"])
    assert {name: tensor.tolist() for name, tensor in held.items()} == {f"w{i}": [float(i)] * 3 for i in range(4)}


def test_large_models_travel_in_chunks(fake: FakeVLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 40)
    with ShmWeightTransfer([fake.url], folder=tmp_path) as transfer:
        transfer.sync(WEIGHTS.items(), version=1)
        transfer.resend(fake.url)
    sent = [(update["names"], update["last"]) for update in updates(fake)]
    assert sent == [(["a.weight"], False), (["b.weight", "c.bias"], True)] * 2


def test_a_refused_update_is_raised_and_the_engine_is_resumed(fake: FakeVLLM, tmp_path: Path) -> None:
    fake.fail["/update_weights"] = "shape mismatch"
    with ShmWeightTransfer([fake.url], folder=tmp_path) as transfer:
        with pytest.raises(WeightSyncError, match=r"version 3 .*/update_weights.*shape mismatch"):
            transfer.sync(WEIGHTS.items(), version=3)
    assert fake.calls[-1][0] == "/resume" and fake.version == "default"


def test_a_restarted_server_that_was_never_synced_is_left_alone(fake: FakeVLLM, tmp_path: Path) -> None:
    with ShmWeightTransfer([fake.url], folder=tmp_path) as transfer:
        transfer.resend(fake.url)
    assert [path for path, _ in fake.calls] == ["/init_weight_transfer_engine"]


def _sync_on_rank(url: str, folder: str) -> dict[str, object]:
    rank = dist.get_rank()
    taken = []

    def named() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in WEIGHTS.items():
            total = tensor.contiguous() * (rank + 1)
            dist.all_reduce(total)  # what reading a sharded model does
            taken.append(name)
            yield name, total

    with ShmWeightTransfer([url] if rank == 0 else [], folder=Path(folder), group=dist.group.WORLD) as transfer:
        transfer.sync(named(), version=1)
        sums = {n: t.sum().item() for f in Path(folder).glob("*-1-*") for n, t in load_file(f).items()}
        dist.barrier()
    error = None
    with ShmWeightTransfer([url] if rank == 0 else [], folder=Path(folder, "gone"), group=dist.group.WORLD) as broken:
        try:
            broken.sync(named(), version=2)
        except WeightSyncError as problem:
            error = str(problem)
    return {"writer": transfer.is_writer, "taken": taken, "sums": sums, "error": error}


def test_ranks_read_in_lockstep_and_fail_together(fake: FakeVLLM, tmp_path: Path) -> None:
    """Rank 1 has no server: it only reads. A full or missing folder on rank 0 must not leave rank 1 in a collective."""
    results = run_on_ranks(2, _sync_on_rank, fake.url, str(tmp_path))
    expected = {name: 3 * tensor.sum().item() for name, tensor in WEIGHTS.items()}
    assert [r["writer"] for r in results] == [True, False]
    for result in results:
        assert result["taken"] == [*WEIGHTS] * 2 and result["sums"] == expected
        assert "rank 0" in result["error"] and "version 2" in result["error"]
    assert len(updates(fake)) == 1
