"""The folder protocol, on real files: what is published is whole, wherever the writer is killed; damage has a name."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from pyrl.learner import checkpoint_store as store
from pyrl.learner.checkpoint_store import CheckpointError

FILES = {"weights_0.bin": b"w" * 1000, "weights_1.bin": b"v" * 10}


def save(root: Path, step: int, keep_last: int = 2) -> Path:
    writing = store.begin(root, step)
    contents = {**FILES, store.TRAINER_STATE: store.encode_trainer_state({"step": step})}
    for name, content in contents.items():
        store.write_synced(writing / name, content)
    records = {name: store.hash_file(writing / name) for name in contents}
    return store.publish(writing, root, store.Manifest(step, {"tp": 1}, records), keep_last)


def names(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir())


def check_whole(folder: Path) -> None:
    store.verify(folder, store.read_manifest(folder))
    assert store.read_trainer_state(folder) == {"step": store.step_of(folder)}
    for name, content in FILES.items():
        assert (folder / name).read_bytes() == content


def test_no_checkpoint(tmp_path: Path) -> None:
    assert store.latest_checkpoint(tmp_path) is None
    assert store.latest_checkpoint(tmp_path / "not there") is None


def test_keep_last(tmp_path: Path) -> None:
    for step in (0, 1, 5, 12):
        assert save(tmp_path, step, keep_last=2) == tmp_path / f"step_{step:06d}"
    assert names(tmp_path) == ["step_000005", "step_000012"]
    save(tmp_path, 13, keep_last=1)
    assert names(tmp_path) == ["step_000013"]
    check_whole(tmp_path / "step_000013")


def test_order_is_by_number_beyond_six_digits(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        save(tmp_path, step)
    assert store.latest_checkpoint(tmp_path) == tmp_path / "step_1000000"


def test_unfinished_folder_is_ignored_then_removed(tmp_path: Path) -> None:
    save(tmp_path, 3)
    unfinished = store.begin(tmp_path, 9)
    store.write_synced(unfinished / "weights_0.bin", b"half")
    assert store.latest_checkpoint(tmp_path) == tmp_path / "step_000003"
    save(tmp_path, 4)
    assert names(tmp_path) == ["step_000003", "step_000004"]


def test_a_rewound_run_sets_the_abandoned_future_aside(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep_last=5)
    save(tmp_path, 2, keep_last=1)
    assert store.latest_checkpoint(tmp_path) == tmp_path / "step_000002"
    assert names(tmp_path) == ["step_000002", "superseded_step_000002", "superseded_step_000003"]


@pytest.mark.parametrize(("name", "found"), [("weights_1.bin", "is not there"), ("weights_0.bin", "has 9 bytes inst")])
def test_what_is_not_all_there_is_not_published(tmp_path: Path, name: str, found: str) -> None:
    """A rank on another node may have written its part to a disk of its own."""
    save(tmp_path, 1)
    writing = store.begin(tmp_path, 2)
    records = {}
    for file, content in FILES.items():
        store.write_synced(writing / file, content)
        records[file] = store.hash_file(writing / file)
    if found.startswith("has"):
        os.truncate(writing / name, 9)
    else:
        (writing / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} {found}.*on several nodes .* on a disk that all of them share"):
        store.publish(writing, tmp_path, store.Manifest(2, {}, records), keep_last=1)
    assert store.complete_checkpoints(tmp_path) == [tmp_path / "step_000001"]


@pytest.mark.parametrize("name", [*FILES, store.TRAINER_STATE, store.MANIFEST])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    earlier, folder = save(tmp_path, 1), save(tmp_path, 2)
    (folder / name).unlink()
    assert store.latest_checkpoint(tmp_path) == folder  # not passed over in silence
    with pytest.raises(CheckpointError, match=rf"{folder}.*{name} is missing.*resume from {earlier}"):
        store.verify(folder, store.read_manifest(folder))


@pytest.mark.parametrize("name", [*FILES, store.TRAINER_STATE])
def test_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, 2)
    size = (folder / name).stat().st_size
    os.truncate(folder / name, size - 1)
    with pytest.raises(
        CheckpointError, match=rf"{name} has {size - 1} bytes, the manifest says {size}.*no earlier one"
    ):
        store.verify(folder, store.read_manifest(folder), names=[])


def test_altered_file_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path, 2)
    content = bytearray((folder / "weights_0.bin").read_bytes())
    content[500] ^= 1
    (folder / "weights_0.bin").write_bytes(content)
    store.verify(folder, store.read_manifest(folder), names=["weights_1.bin"])
    with pytest.raises(CheckpointError, match=r"weights_0\.bin does not have the SHA-256"):
        store.verify(folder, store.read_manifest(folder))


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format_version": 2, "step": 2, "layout": {}, "files": {"a": 1}}']
)
def test_damaged_manifest_is_named(tmp_path: Path, content: str) -> None:
    folder = save(tmp_path, 2)
    (folder / store.MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read"):
        store.read_manifest(folder)


def test_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 2) / store.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(CheckpointError, match="format_version 99, this version of pyrl reads 2: "):
        store.read_manifest(path.parent)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        store.read_trainer_state(tmp_path / "nowhere")


@pytest.mark.parametrize("state", [{"a": (1, 2)}, {1: "a"}, {"a": float("nan")}, {"a": {1, 2}}])
def test_state_that_json_would_change_is_refused(state: dict) -> None:
    with pytest.raises(CheckpointError, match="trainer_state"):
        store.encode_trainer_state(state)


def test_trainer_state_returns_as_it_was(tmp_path: Path) -> None:
    state = {"cursor": 2**53 + 1, "rate": 0.1, "none": None, "list": [1, [True]], "text": "é"}
    writing = store.begin(tmp_path, 0)
    store.write_synced(writing / store.TRAINER_STATE, store.encode_trainer_state(state))
    files = {store.TRAINER_STATE: store.hash_file(writing / store.TRAINER_STATE)}
    assert store.read_trainer_state(store.publish(writing, tmp_path, store.Manifest(0, {}, files), 1)) == state


def test_old_checkpoint_that_cannot_be_removed_does_not_fail_the_save(tmp_path, monkeypatch, caplog) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(store.shutil, "rmtree", lambda path: (_ for _ in ()).throw(OSError(errno.EBUSY, "busy")))
    save(tmp_path, 2, keep_last=1)
    assert store.complete_checkpoints(tmp_path) == [tmp_path / "step_000002"]
    assert "step_000001 could not be removed" in caplog.text
    monkeypatch.undo()
    save(tmp_path, 3, keep_last=1)
    assert names(tmp_path) == ["step_000003"]


def _killed_at(root: Path, event: int) -> bool:
    """Save step 3 in a child that is killed at the n-th file operation under `root`; whether it was."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(name: str, args: tuple) -> None:
            nonlocal seen
            if name == "open" or name.startswith(("os.", "shutil.")):
                seen += 1
                if seen == event:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        save(root, 3, keep_last=2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
    return status != 0


def test_killed_anywhere_a_whole_checkpoint_is_the_latest(tmp_path: Path) -> None:
    """Every file operation of a save, its publication and the removal of the oldest is a place to die."""
    latest_seen = []
    for event in range(1, 1000):
        root = tmp_path / str(event)
        for step in (1, 2):
            save(root, step)
        killed = _killed_at(root, event)
        folders = store.complete_checkpoints(root)
        for folder in folders:
            check_whole(folder)
        assert folders[-1].name in ("step_000002", "step_000003")
        latest_seen.append(folders[-1].name)
        save(root, 4)
        assert names(root) == [folders[-1].name, "step_000004"]
        if not killed:
            break
    assert not killed and event > 20
    first_new = latest_seen.index("step_000003")
    assert 0 < first_new < len(latest_seen) - 1, "a kill was seen both before and after the publication"
    assert set(latest_seen[first_new:]) == {"step_000003"}
