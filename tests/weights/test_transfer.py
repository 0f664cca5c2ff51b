"""The shm transport's sender: order of the calls, files, several ranks, failures."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
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
from tests.rollout.processes import wait_for

WEIGHTS = {"a.weight": torch.arange(12.0).reshape(3, 4).T, "b.weight": torch.ones(5), "c.bias": torch.zeros(2)}


@pytest.fixture
def fake() -> Iterator[FakeVLLM]:
    with FakeVLLM(version="default") as server:
        yield server


def updates(fake: FakeVLLM) -> list[dict]:
    return [body["update_info"] for path, body in fake.calls if path == "/update_weights"]


def files(transfer: ShmWeightTransfer) -> list[Path]:
    return list(transfer.folder.glob("*.safetensors"))


def test_sync_is_pause_start_update_finish_resume(fake: FakeVLLM) -> None:
    with ShmWeightTransfer([fake.url]) as transfer:
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
        assert len(files(transfer)) == 1  # only the newest version is kept, for restarted servers
        folder = transfer.folder
    assert not folder.exists()


def test_the_iterator_may_reuse_its_memory(fake: FakeVLLM) -> None:
    def reusing() -> Iterator[tuple[str, torch.Tensor]]:
        buffer = torch.empty(3)
        for i in range(4):
            yield f"w{i}", buffer.fill_(i)

    with ShmWeightTransfer([fake.url]) as transfer:
        transfer.sync(reusing(), version=1)
        held = load_file(updates(fake)[0]["path"])
    assert {name: tensor.tolist() for name, tensor in held.items()} == {f"w{i}": [float(i)] * 3 for i in range(4)}


def test_large_models_travel_in_chunks(fake: FakeVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 40)
    with ShmWeightTransfer([fake.url]) as transfer:
        transfer.sync(WEIGHTS.items(), version=1)
        transfer.resend(fake.url)
    sent = [(update["names"], update["last"]) for update in updates(fake)]
    assert sent == [(["a.weight"], False), (["b.weight", "c.bias"], True)] * 2


def test_a_refused_update_is_raised_and_the_engine_is_resumed(fake: FakeVLLM) -> None:
    fake.fail["/update_weights"] = "shape mismatch"
    with ShmWeightTransfer([fake.url]) as transfer:
        with pytest.raises(WeightSyncError, match=r"version 3 .*/update_weights.*shape mismatch"):
            transfer.sync(WEIGHTS.items(), version=3)
    assert fake.calls[-1][0] == "/resume" and fake.version == "default"


def test_a_restarted_server_that_was_never_synced_is_left_alone(fake: FakeVLLM) -> None:
    with ShmWeightTransfer([fake.url]) as transfer:
        transfer.resend(fake.url)
    assert [path for path, _ in fake.calls] == ["/init_weight_transfer_engine"]


def test_a_given_server_that_is_being_restarted_is_waited_for(fake: FakeVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody resends what it held, so the next sync must not start before it answers."""
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    with ShmWeightTransfer([fake.url]) as transfer:
        assert not transfer.restores_servers
        transfer.sync(WEIGHTS.items(), version=1)
        fake.fail["/weight_info"] = "starting"
        fake.version = "default"
        timer = threading.Timer(0.5, fake.fail.clear)
        timer.start()
        assert not transfer.all_hold(1)
        assert not timer.is_alive()
        transfer.sync(WEIGHTS.items(), version=1)
        assert transfer.all_hold(1) and len(updates(fake)) == 2


def test_waiting_for_a_given_server_is_bounded(fake: FakeVLLM) -> None:
    with ShmWeightTransfer([fake.url], startup_timeout=0.3) as transfer:
        transfer.sync(WEIGHTS.items(), version=1)
        fake.fail["/weight_info"] = "starting"
        with pytest.raises(WeightSyncError, match=rf"did not come back: .*{fake.url}.*starting"):
            transfer.sync(WEIGHTS.items(), version=2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_weight_files_do_not_outlive_a_killed_trainer(fake: FakeVLLM, number: signal.Signals) -> None:
    code = (
        "import sys, time, torch\n"
        "from pyrl.weights.transfer import ShmWeightTransfer\n"
        "transfer = ShmWeightTransfer([sys.argv[1]])\n"
        "transfer.sync([('a', torch.zeros(1000))], version=1)\n"
        "print(transfer.folder, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, fake.url], stdout=subprocess.PIPE, text=True) as trainer:
        folder = Path(trainer.stdout.readline().strip())
        assert list(folder.glob("*.safetensors"))
        trainer.send_signal(number)
    wait_for(lambda: not folder.exists())


def _sync_on_rank(url: str) -> dict[str, object]:
    rank = dist.get_rank()
    taken = []

    def named() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in WEIGHTS.items():
            total = tensor.contiguous() * (rank + 1)
            dist.all_reduce(total)  # what reading a sharded model does
            taken.append(name)
            yield name, total

    with ShmWeightTransfer([url] if rank == 0 else [], group=dist.group.WORLD) as transfer:
        transfer.sync(named(), version=1)
        sums = {n: t.sum().item() for f in (files(transfer) if rank == 0 else ()) for n, t in load_file(f).items()}
    error = None
    with ShmWeightTransfer([url] if rank == 0 else [], group=dist.group.WORLD) as broken:
        if rank == 0:
            shutil.rmtree(broken.folder)
        try:
            broken.sync(named(), version=2)
        except WeightSyncError as problem:
            error = str(problem)
    return {"writer": transfer.is_writer, "taken": taken, "sums": sums, "error": error}


def test_ranks_read_in_lockstep_and_fail_together(fake: FakeVLLM) -> None:
    """Rank 1 has no server: it only reads. A full or missing folder on rank 0 must not leave rank 1 in a collective."""
    results = run_on_ranks(2, _sync_on_rank, fake.url)
    expected = {name: 3 * tensor.sum().item() for name, tensor in WEIGHTS.items()}
    assert [r["writer"] for r in results] == [True, False]
    assert results[0]["sums"] == expected
    for result in results:
        assert result["taken"] == [*WEIGHTS] * 2
        assert "rank 0" in result["error"] and "version 2" in result["error"]
    assert len(updates(fake)) == 1
