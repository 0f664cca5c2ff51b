"""Starting, watching and ending servers, with a small HTTP process in vLLM's place."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pyrl.rollout import control, server
from pyrl.rollout.control import EngineControl
from pyrl.rollout.server import ServerError, ServerPool, VLLMServer
from pyrl.rollout.vllm_main import note_deaths
from tests.rollout.fake_vllm import FakeVLLM
from tests.rollout.processes import alive, killable_process, wait_for

SERVER = """
import http.server, os, signal, subprocess, sys
print("starting on", sys.argv[1], flush=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a server that does not want to end
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"],
                 start_new_session=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer.allow_reuse_address = True
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    return path


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STOP_GRACE_SECONDS", 0.3)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ServerPool]]:
    pools: list[ServerPool] = []

    def start(command: Callable[[int], list[str]], startup_timeout: float = 30.0) -> ServerPool:
        one = VLLMServer("server", command, dict(os.environ), tmp_path / "server.log", startup_timeout)
        pools.append(ServerPool([one]))
        return pools[-1]

    yield start
    for pool in pools:
        pool.stop()


def family(pool: ServerPool) -> list[psutil.Process]:
    guarding = psutil.Process(pool._servers[0].pid)
    return [guarding, *guarding.children(recursive=True)]


def restarts(pool: ServerPool) -> int:
    return len(pool._servers[0].restarts)


def test_stop_ends_children_that_ignore_sigterm(start, script: Path) -> None:
    pool = start(lambda port: [sys.executable, str(script), str(port)])
    pool.wait_ready()
    members = family(pool)
    assert len(members) == 3  # guard, server, child
    pool.stop()
    assert alive(members) == []


def test_killed_server_comes_back_at_its_url_and_is_announced_before_it_is_ready(start, script: Path) -> None:
    pool = start(lambda port: [sys.executable, str(script), str(port)])
    urls = pool.wait_ready()
    told: list[tuple[str, str]] = []
    pool.on_restart = lambda url: told.append((url, pool._servers[0].state))
    members = family(pool)
    members[1].kill()
    wait_for(lambda: restarts(pool) == 1)
    assert pool.wait_ready() == urls
    assert told == [(urls[0], "starting")]
    assert alive(members) == []  # the first server's child was not left behind


def test_a_server_that_keeps_dying_is_given_up(start, script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_RESTARTS", 1)
    pool = start(lambda port: [sys.executable, str(script), str(port)])
    for _ in range(2):
        pool.wait_ready()
        before = restarts(pool)
        family(pool)[1].kill()
        wait_for(lambda before=before: restarts(pool) > before or pool._servers[0].state == "failed")
    killed = r"was ended by SIGKILL, as the kernel does where memory runs out \(this machine has \d+ GiB, \d+ GiB "
    with pytest.raises(ServerError, match=rf"{killed}.*, after 1 restarts"):
        pool.wait_ready()
    with pytest.raises(ServerError, match="starting on"):  # its last log lines
        pool.raise_if_failed()


def test_a_server_that_is_too_busy_to_answer_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "HEALTH_SECONDS", 0.3)
    with FakeVLLM() as fake, EngineControl(fake.url) as alive:
        assert (alive.health(), alive.healthy()) == ("well", True)
        fake.fail["/health"] = "engine is dead"
        assert (alive.health(), alive.healthy()) == ("dead", False)
    with EngineControl(fake.url) as gone:
        assert (gone.health(), gone.healthy()) == ("dead", False)
    with socket.socket() as busy:  # the kernel takes the connection, nobody reads the request
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        with EngineControl(f"http://127.0.0.1:{busy.getsockname()[1]}") as asked:
            assert (asked.health(), asked.healthy()) == ("silent", False)


@pytest.mark.parametrize(("health", "borne"), [("dead", 10), ("silent", 120)])
def test_an_unwell_server_is_borne_for_a_while(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, health: str, borne: int
) -> None:
    now, said = [1000.0], ["well"]
    monkeypatch.setattr(server, "time", SimpleNamespace(monotonic=lambda: now[0]))
    one = VLLMServer("server", lambda _: [], {}, tmp_path / "server.log", 30.0)
    one._control = SimpleNamespace(health=lambda: said[0])

    def seconds_borne(most: int = 1000) -> int | None:
        for seconds in range(most):
            now[0] += 1.0
            if one.engine_died():
                return seconds
        return None

    assert seconds_borne() is None
    said[0] = "silent" if health == "dead" else "dead"
    assert seconds_borne(9) is None  # the time of one does not count for the other
    said[0] = health
    assert seconds_borne(borne) is None
    said[0] = "well"
    assert seconds_borne(3) is None
    said[0] = health
    assert seconds_borne() == borne + 1


def test_taken_port_is_replaced_by_another(start, script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port, real = taken.getsockname()[1], server.free_port
        offers = iter([port])
        monkeypatch.setattr(server, "free_port", lambda: next(offers, None) or real())
        pool = start(lambda port: [sys.executable, str(script), str(port)])
        (url,) = pool.wait_ready()
        assert not url.endswith(f":{port}")


def test_failed_start_shows_the_last_log_lines(start, tmp_path: Path) -> None:
    pool = start(lambda _: [sys.executable, "-c", "print('loading'); raise SystemExit('no such model')"])
    with pytest.raises(ServerError, match=r"exit code 1 before it was healthy") as caught:
        pool.wait_ready()
    assert "no such model" in str(caught.value) and str(tmp_path / "server.log") in str(caught.value)


@pytest.mark.parametrize(("code", "said"), [(0, "exit code 0"), (3, "exit code 3"), (139, "SIGSEGV"), (137, "SIGKILL")])
def test_the_end_of_a_server_is_called_by_its_signal(start, code: int, said: str) -> None:
    pool = start(lambda _: [sys.executable, "-c", f"raise SystemExit({code})"])
    with pytest.raises(ServerError, match=rf"{said}.* before it was healthy"):
        pool.wait_ready()


@pytest.mark.parametrize(("failed", "noted"), [(None, []), ("engine 1", [-9])])
def test_an_engine_that_ends_unasked_leaves_its_exit_code(failed: str | None, noted: list[int]) -> None:
    """vLLM's keeper knows which engine failed; one that it ends itself, by SIGTERM, is none."""

    class Manager:
        failed_proc_name = failed

        def monitor_engine_liveness(self) -> None:
            self.ended = {"engine 0": -15, "engine 1": -9}

        def finished_procs(self) -> dict[str, int]:
            return self.ended

    died = note_deaths(Manager)
    Manager().monitor_engine_liveness()
    assert died == noted


def test_start_has_a_deadline(start) -> None:
    pool = start(lambda _: [sys.executable, "-c", "import time; print('still loading', flush=True); time.sleep(600)"],
                 startup_timeout=1.5)  # fmt: skip
    members = wait_for(lambda: len(found := family(pool)) == 2 and found)
    with pytest.raises(ServerError, match=r"within 1.5 s(.|\n)*still loading"):
        pool.wait_ready()
    assert alive(members) == []


def test_guard_ends_everything_when_its_parent_is_killed(script: Path) -> None:
    command = [sys.executable, str(script), str(server.free_port())]
    (pid,), kill = killable_process(
        "import subprocess, time\n"
        "from pyrl.rollout import guard\n"
        f"print(subprocess.Popen(guard.command_line(grace=5, command={command!r})).pid, flush=True); time.sleep(600)"
    )
    guarding = psutil.Process(int(pid))
    members = wait_for(lambda: len(found := [guarding, *guarding.children(recursive=True)]) == 3 and found)
    kill()
    wait_for(lambda: not alive(members))


@pytest.mark.parametrize("count", [1, 3])
def test_the_logs_of_several_nodes_do_not_meet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int) -> None:
    """They lie in one folder, on a disk that the nodes share."""
    settings = server.ServerSettings(tmp_path, "fp32", 64, "shm", "cpu")
    monkeypatch.setattr(ServerPool, "__init__", lambda pool, servers: setattr(pool, "_servers", servers))
    pools = [ServerPool.from_settings(settings, tmp_path, count=count, node=node) for node in (None, 0, 1)]
    paths = [one.log_path for pool in pools for one in pool._servers]
    assert len(set(paths)) == 3 * count and all(path.match("server*.log") for path in paths)
    assert paths[0].name == ("server.log" if count == 1 else "server-0.log")


def test_missing_plugin_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(server, "entry_points", lambda **_: ())
    settings = server.ServerSettings(tmp_path, "fp32", 64, "shm", "cpu")
    with pytest.raises(ServerError, match=r"pyrl_shm.*pip install"):
        ServerPool.from_settings(settings, tmp_path)
