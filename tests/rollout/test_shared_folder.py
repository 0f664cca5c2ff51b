"""Weight files in shared memory outlive nobody."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from pyrl.rollout import shared_folder
from pyrl.rollout.shared_folder import SharedFolder, free_bytes
from tests.rollout.processes import alive, killable_process, wait_for

OWNER = """
import time
from pyrl.rollout.shared_folder import SharedFolder
folder = SharedFolder()
(folder.path / "weights").write_text("bits")
print(folder.path, folder._guard.pid, flush=True)
time.sleep(600)
"""


def test_nothing_takes_the_place_of_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_folder, "SHARED_MEMORY", tmp_path / "absent")
    assert free_bytes() is None
    with pytest.raises(FileNotFoundError, match="absent"):
        SharedFolder()


def test_what_a_killed_owner_left_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_folder, "SHARED_MEMORY", tmp_path)
    (tmp_path / "pyrl-left").mkdir()
    (tmp_path / "pyrl-left" / ".lock").touch()
    (tmp_path / "somebody-elses").touch()
    assert free_bytes() > 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["somebody-elses"]


def test_it_goes_when_it_is_closed() -> None:
    with SharedFolder() as folder:
        (folder.path / "weights").write_text("bits")
        guarding = psutil.Process(folder._guard.pid)
        assert alive([guarding])
    assert not folder.path.exists() and not alive([guarding])


def test_it_goes_when_its_owner_is_killed() -> None:
    (path, guard), kill = killable_process(OWNER)
    guarding = psutil.Process(int(guard))
    assert (Path(path) / "weights").exists()
    kill()
    wait_for(lambda: not Path(path).exists() and not alive([guarding]))


def test_the_next_one_removes_what_was_left_when_the_guard_was_killed_too() -> None:
    (path, guard), kill = killable_process(OWNER)
    psutil.Process(int(guard)).kill()
    with SharedFolder():
        assert (Path(path) / "weights").exists()  # its owner lives
    kill()
    assert (Path(path) / "weights").exists()
    with SharedFolder():
        assert not Path(path).exists()
