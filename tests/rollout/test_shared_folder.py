"""Weight files in shared memory outlive nobody."""

from __future__ import annotations

from pathlib import Path

import psutil

from pyrl.rollout.shared_folder import SharedFolder
from tests.rollout.processes import alive, killable_process, wait_for

OWNER = """
import time
from pyrl.rollout.shared_folder import SharedFolder
folder = SharedFolder()
(folder.path / "weights").write_text("bits")
print(folder.path, folder._guard.pid, flush=True)
time.sleep(600)
"""


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
