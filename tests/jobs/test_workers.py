"""Workers: every run is made once, several at a time, and nobody is left behind, whatever ends them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pyrl.config import ConfigError
from pyrl.jobs.workers import JobError, start_workers
from tests.jobs.scripted import Run, Servers, wait_until


def never() -> bool:
    return False


def begun(folder: Path) -> dict[str, str]:
    """Title -> process and servers, of the runs that were begun."""
    return {path.name.removeprefix("begun-"): path.read_text() for path in folder.glob("begun-*[!p]")}


def servers_left(folder: Path) -> list[Path]:
    return list(folder.glob("servers-*"))


@pytest.mark.parametrize("count", [1, 2])
def test_every_run_is_made_once_in_its_order(tmp_path: Path, count: int) -> None:
    runs = [Run(f"ends {i}", tmp_path) for i in range(5)]
    with start_workers(Servers(tmp_path), count) as workers:
        assert workers.run(runs, never) is True
        made = sorted(tmp_path.glob("begun-*"), key=lambda path: path.stat().st_mtime_ns)
        assert sorted(begun(tmp_path)) == [run.title for run in runs]
        if count == 1:
            assert [path.name for path in made] == [f"begun-ends {i}" for i in range(5)]
            assert set(begun(tmp_path).values()) == {f"{os.getpid()} log"}
        else:
            assert not any(said.startswith(f"{os.getpid()} ") for said in begun(tmp_path).values())
        more = Run("ends later", tmp_path)
        assert workers.run([more], never) is True and more.title in begun(tmp_path)
    assert servers_left(tmp_path) == []


def test_two_run_at_a_time_each_on_its_own_servers(tmp_path: Path) -> None:
    with start_workers(Servers(tmp_path), 2) as workers:
        assert workers.run([Run(f"meets {i}", tmp_path, "meets") for i in range(2)], never) is True
    assert {said.split()[1] for said in begun(tmp_path).values()} == {"worker_1", "worker_2"}
    assert len({said.split()[0] for said in begun(tmp_path).values()}) == 2


@pytest.mark.parametrize("count", [1, 2])
def test_asked_to_stop_they_leave_their_runs_and_begin_none(tmp_path: Path, count: int) -> None:
    runs = [Run(f"waits {i}", tmp_path, "waits") for i in range(3)]
    with start_workers(Servers(tmp_path), count) as workers:
        assert workers.run(runs, lambda: len(begun(tmp_path)) >= count) is False
    assert len(begun(tmp_path)) == count == len(list(tmp_path.glob("stopped-*")))
    assert servers_left(tmp_path) == []


def test_a_run_that_is_refused_stops_the_others(tmp_path: Path) -> None:
    runs = [Run("waits", tmp_path, "waits"), Run("bad", tmp_path, "refuses"), Run("ends", tmp_path)]
    with start_workers(Servers(tmp_path), 2) as workers, pytest.raises(ConfigError, match="bad cannot be"):
        workers.run(runs, never)
    assert (tmp_path / "stopped-waits").exists() and "ends" not in begun(tmp_path)
    assert servers_left(tmp_path) == []


def test_a_worker_that_dies_is_named_with_its_run(tmp_path: Path) -> None:
    runs = [Run("waits", tmp_path, "waits"), Run("bad", tmp_path, "dies"), Run("ends", tmp_path)]
    with start_workers(Servers(tmp_path), 2) as workers, pytest.raises(JobError) as caught:
        workers.run(runs, never)
    assert re.fullmatch(r"bad: worker \d ended with exit code 7; what it printed says why", str(caught.value))
    assert (tmp_path / "stopped-waits").exists() and "ends" not in begun(tmp_path)


def test_several_workers_cannot_share_servers_that_run_already(tmp_path: Path) -> None:
    shared = Servers(tmp_path, urls=("http://127.0.0.1:1",))
    with pytest.raises(ConfigError, match=r"--jobs 2: the servers of rollout\.urls .* use --jobs 1"), start_workers(
        shared, 2
    ):
        pass
    assert servers_left(tmp_path) == []


PARENT = """
if __name__ == "__main__":
    import sys
    from pathlib import Path
    from pyrl.jobs.workers import start_workers
    from tests.jobs.scripted import Run, Servers
    folder = Path(sys.argv[1])
    with start_workers(Servers(folder), 2) as workers:
        workers.run([Run(f"waits {i}", folder, "waits") for i in range(2)], lambda: False)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_they_end_with_the_process_that_started_them(tmp_path: Path, how: signal.Signals) -> None:
    """And leave their runs at a checkpoint, also where a Ctrl-C or a SIGTERM reaches it and them at once."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    starter = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        wait_until(lambda: len(begun(tmp_path)) == 2)
        workers = [psutil.Process(int(said.split()[0])) for said in begun(tmp_path).values()]
        if how == signal.SIGKILL:
            starter.kill()
        else:
            os.killpg(starter.pid, how)
        assert starter.wait(60) != 0
        wait_until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers))
        assert len(list(tmp_path.glob("stopped-*"))) == 2 and servers_left(tmp_path) == []
    finally:
        starter.kill()
