"""Save and load of model and optimizer in real gloo processes: a resume is bit-equal, a failed save leaves no trace."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrl.learner import checkpoint
from pyrl.learner import checkpoint_store as store
from pyrl.learner.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    read_trainer_state,
    save_checkpoint,
)
from tests.learner.checkpoint_job import Job, Layout, run

STATE = {"consumed_prompts": 7, "policy_version": 3, "seen": [1, 2]}
LAYOUT_TOLERANCE = 1e-6
"""Loss and gradient norm under another layout, relative: fp32 sums in another order."""


def save(job: Job, root: Path, step: int, keep_last: int = 2) -> Path:
    return save_checkpoint(
        root, step, model=job.model, optimizer=job.optimizer, trainer_state=STATE, keep_last=keep_last
    )


def load(job: Job, folder: Path) -> dict[str, Any]:
    return load_checkpoint(folder, model=job.model, optimizer=job.optimizer)


def _draws() -> torch.Tensor:
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    with get_cuda_rng_tracker().fork():
        inside = torch.rand(3)
    return torch.cat([inside, torch.rand(3)])


def _report(job: Job, draws: torch.Tensor) -> dict[str, Any]:
    return {"losses": job.losses, "norms": job.grad_norms, "parameters": job.parameters(), "draws": draws}


def _unbroken(job: Job, root: Path, steps: int) -> dict[str, Any]:
    """Train, save in the middle, go on; what is reported comes after the save."""
    job.train(0, steps)
    _draws()
    save(job, root, steps)
    draws = _draws()
    job.losses.clear(), job.grad_norms.clear()
    job.train(steps, 3)
    return _report(job, draws)


def _resumed(job: Job, root: Path, steps: int) -> dict[str, Any]:
    folder = latest_checkpoint(root)
    assert folder is not None
    assert load(job, folder) == STATE
    draws = _draws()
    job.train(steps, 3)
    return _report(job, draws)


def _assert_same_bits(unbroken: list[dict[str, Any]], resumed: list[dict[str, Any]]) -> None:
    for rank, (want, got) in enumerate(zip(unbroken, resumed, strict=True)):
        assert want["losses"] == got["losses"], f"rank {rank}"
        assert want["norms"] == got["norms"], f"rank {rank}"
        assert torch.equal(want["draws"], got["draws"]), f"rank {rank}"
        assert want["parameters"].keys() == got["parameters"].keys()
        for name, parameter in want["parameters"].items():
            assert torch.equal(parameter, got["parameters"][name]), f"rank {rank}: {name}"
    assert len(set(unbroken[0]["norms"])) == 3, "the updates differ, so the comparison means something"


@pytest.mark.parametrize("steps", [0, 2], ids=["step0", "step2"])
@pytest.mark.parametrize(
    "layout",
    [
        Layout(),
        Layout(distributed_optimizer=False),
        Layout(distributed_optimizer=False, bf16=True),
    ],
    ids=str,
)
def test_resume_is_bit_equal_in_one_process(tmp_path: Path, layout: Layout, steps: int) -> None:
    _assert_same_bits(run(layout, _unbroken, tmp_path, steps), run(layout, _resumed, tmp_path, steps))
    assert read_trainer_state(tmp_path / f"step_{steps:06d}") == STATE


@pytest.mark.parametrize(
    "layout",
    [
        Layout(dp=2),
        Layout(dp=2, distributed_optimizer=False),
        Layout(dp=2, bf16=True),
        Layout(tp=2),
        Layout(pp=2),  # tied embeddings: the buffer has two buckets with padding between them
        Layout(pp=2, bf16=True),
    ],
    ids=str,
)
def test_resume_is_bit_equal_in_two_processes(tmp_path: Path, layout: Layout) -> None:
    _assert_same_bits(run(layout, _unbroken, tmp_path, 2), run(layout, _resumed, tmp_path, 2))


@pytest.mark.parametrize(
    ("saved", "resumed"),
    [
        (Layout(dp=2), Layout(tp=2)),
        (Layout(dp=2), Layout()),
        (Layout(pp=2), Layout(dp=2)),
        (Layout(tp=2), Layout(pp=2)),
    ],
    ids=str,
)
def test_another_layout_goes_on_alike(tmp_path: Path, saved: Layout, resumed: Layout) -> None:
    want, got = run(saved, _unbroken, tmp_path, 2), run(resumed, _resumed, tmp_path, 2)
    assert got[0]["norms"] == pytest.approx(want[0]["norms"], rel=LAYOUT_TOLERANCE)
    assert _mean_losses(resumed, got) == pytest.approx(_mean_losses(saved, want), rel=LAYOUT_TOLERANCE)


def _mean_losses(layout: Layout, ranks: list[dict[str, Any]]) -> list[float]:
    """Over data-parallel ranks; only the last pipeline stage has losses."""
    of_stage = ranks[-layout.dp * layout.tp :]
    return torch.tensor([r["losses"] for r in of_stage], dtype=torch.float64).mean(0).tolist()


# What is refused


def _save_once(job: Job, root: Path, step: int = 1) -> Path:
    return save(job, root, step)


def _refused(job: Job, folder: Path) -> tuple[str, bool]:
    """The error of a load, and whether the parameters were left as they were."""
    before = job.parameters()
    with pytest.raises(CheckpointError) as caught:
        load(job, folder)
    return str(caught.value), all(torch.equal(before[n], p) for n, p in job.parameters().items())


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_damaged_shard_is_refused_by_name_on_every_rank(tmp_path: Path, damage: str) -> None:
    folder = run(Layout(dp=2), _save_once, tmp_path)[0]
    shard = folder / "__1_0.distcp"
    assert shard.stat().st_size > 1000, "the second rank writes its share"
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        os.truncate(shard, shard.stat().st_size // 2)
    else:
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    for text, untouched in run(Layout(dp=2), _refused, folder):
        assert "__1_0.distcp" in text and str(folder) in text
        assert untouched


@pytest.mark.parametrize(
    ("saved", "other", "expected"),
    [
        (Layout(), Layout(hidden=20), "does not fit this model"),
        (Layout(), Layout(distributed_optimizer=False), "set parallel.distributed_optimizer as it was"),
        (Layout(), Layout(bf16=True), "set model.dtype as it was"),
    ],
    ids=["width", "optimizer", "dtype"],
)
def test_another_learner_is_refused(tmp_path: Path, saved: Layout, other: Layout, expected: str) -> None:
    folder = run(saved, _save_once, tmp_path)[0]
    ((text, _),) = run(other, _refused, folder)
    assert expected in text and str(folder) in text


def _bad_arguments(job: Job, root: Path) -> list[str]:
    errors = []
    for arguments in ({"step": -1}, {"step": 1, "keep_last": 0}):
        with pytest.raises(CheckpointError) as caught:
            save(job, root, **arguments)
        errors.append(str(caught.value))
    return errors


def test_bad_arguments(tmp_path: Path) -> None:
    ((negative, none_kept),) = run(Layout(), _bad_arguments, tmp_path / "root")
    assert "step -1" in negative and "keep_last 0" in none_kept
    assert not (tmp_path / "root").exists()


# Failure while saving


def _disk_full_on_last_rank(job: Job, root: Path) -> tuple[str, list[str]]:
    """The last rank may write no file above 4 KiB; returns the error and what the root holds afterwards."""
    job.train(0, 1)
    save(job, root, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if torch.distributed.get_rank() == job.layout.world_size - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    with pytest.raises(CheckpointError) as caught:
        save(job, root, 2)
    torch.distributed.barrier()
    left = sorted(entry.name for entry in root.iterdir())
    torch.distributed.barrier()
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    save(job, root, 3)  # the run goes on once there is room
    return str(caught.value), left


@pytest.mark.parametrize("layout", [Layout(), Layout(dp=2)], ids=str)
def test_disk_full_leaves_earlier_checkpoints_and_no_rest(tmp_path: Path, layout: Layout) -> None:
    for text, left in run(layout, _disk_full_on_last_rank, tmp_path):
        assert "checkpoint of step 2 was not saved" in text
        assert "File too large" in text or "failed writing" in text
        assert f"rank {layout.world_size - 1}" in text
        assert f"the newest is {tmp_path / 'step_000001'}" in text
        assert left == ["step_000001"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step_000001", "step_000003"]
    for folder in store.complete_checkpoints(tmp_path):
        store.verify(folder, store.read_manifest(folder))


def _on_a_disk_of_its_own(job: Job, root: Path, own: Path) -> str:
    """The second rank's files go to `own`: what it opens under `root` is on another machine."""
    job.train(0, 1)
    save(job, root, 1)
    if torch.distributed.get_rank() == 1:
        shards, common = checkpoint._write_shards, checkpoint._write_common
        checkpoint._write_shards = lambda sharded, folder: shards(sharded, own / folder.name)
        checkpoint._write_common = lambda folder, *rest: common(own / folder.name, *rest)
    with pytest.raises(CheckpointError) as caught:
        save(job, root, 2)
    return str(caught.value)


def test_nodes_that_share_no_disk_are_found_out(tmp_path: Path) -> None:
    root, own = tmp_path / "shared", tmp_path / "own"
    for text in run(Layout(dp=2), _on_a_disk_of_its_own, root, own):
        assert "__1_0.distcp is not there" in text and "on a disk that all of them share" in text
        assert f"the newest is {root / 'step_000001'}" in text
    assert [entry.name for entry in root.iterdir()] == ["step_000001"]
    assert list(own.rglob("__1_0.distcp")), "the second rank noticed nothing"


def _unwritable_root(job: Job, root: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        save(job, root, 1)
    return str(caught.value)


def test_root_that_is_a_file_fails_on_every_rank(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("not a folder")
    for text in run(Layout(dp=2), _unwritable_root, tmp_path / "checkpoints"):
        assert "was not saved" in text and "there is no earlier checkpoint" in text


def _killed_before_rename(job: Job, root: Path) -> None:
    job.train(0, 1)
    save(job, root, 1)
    job.train(1, 1)
    rename = os.rename

    def die_at_the_last(source: Path, target: Path) -> None:
        if Path(target).name == "step_000002":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.rename = die_at_the_last
    save(job, root, 2)


def test_killed_before_the_rename(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="died"):
        run(Layout(), _killed_before_rename, tmp_path)
    assert (tmp_path / ".writing_step_000002" / store.MANIFEST).exists(), "killed after everything was written"
    assert latest_checkpoint(tmp_path) == tmp_path / "step_000001"
    assert run(Layout(), _load_and_save, tmp_path) == [STATE]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step_000001", "step_000002"]


def _load_and_save(job: Job, root: Path) -> dict[str, Any]:
    state = load(job, root / "step_000001")
    save(job, root, 2)
    return state


def test_manifest_lists_every_file_and_the_layout(tmp_path: Path) -> None:
    folder = run(Layout(tp=2), _save_once, tmp_path)[0]
    document = json.loads((folder / "manifest.json").read_text())
    assert set(document["files"]) == {entry.name for entry in folder.iterdir()} - {"manifest.json"}
    assert document["files"]["__1_0.distcp"]["bytes"] == (folder / "__1_0.distcp").stat().st_size
    assert document["step"] == 1
    assert (document["layout"]["tp"], document["layout"]["pp"], document["layout"]["world_size"]) == (2, 1, 2)
