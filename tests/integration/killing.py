"""Disturbs a run of `pyrl train`: kills a vLLM server in the middle of a step, or presses Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import httpx
import psutil

from tests.rollout.processes import alive, wait_for
from tests.run_job import DEADLINE_SECONDS, STEPS, Process, differences, rows

KILLED_AFTER = 2
"""The server is killed in the first step after so many in which it is seen at work, which is not the last."""


def server_below(pid: int, log: Path) -> psutil.Process | None:
    """The process of `python -m pyrl.rollout.vllm_main`, not its guard, whose output goes to `log`."""
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            is_server = process.cmdline()[1:3] == ["-m", "pyrl.rollout.vllm_main"]
            if is_server and log.samefile(f"/proc/{process.pid}/fd/1"):
                return process
    return None


def port_of(server: psutil.Process) -> str:
    command = server.cmdline()
    return command[command.index("--port") + 1]


def steps_done(run_folder: Path) -> int:
    metrics = run_folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def kill_with_requests_in_flight(server: psutil.Process, http: httpx.Client, run_folder: Path) -> list[psutil.Process]:
    """The server and its children, of which the server is killed while a step generates.

    Its engine is held meanwhile, so what the server says to be in flight cannot end before the kill.
    """
    engine = server.children(recursive=True)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        assert time.monotonic() < deadline, "no request was in flight"
        if steps_done(run_folder) >= KILLED_AFTER and held_with_requests(engine, http):
            break
        time.sleep(0.01)
    server.kill()
    for process in engine:
        process.resume()
    return [server, *engine]


def held_with_requests(engine: list[psutil.Process], http: httpx.Client) -> bool:
    """Stop the engine's processes; let them go on, and return False, where no request waits for them."""
    for process in engine:
        process.suspend()
    time.sleep(0.05)  # what the engine had finished has left the server
    if http.get("/load").json()["server_load"] > 0:
        return True
    for process in engine:
        process.resume()
    return False


def first_version_after_the_model_folders(http: httpx.Client) -> str:
    """What the restarted server says of its weights once it was given any."""

    def given() -> str | None:
        try:
            version = http.get("/weight_info").json()["weight_version"]
        except httpx.TransportError:
            return None
        return None if version == "default" else version

    return str(wait_for(given, DEADLINE_SECONDS))


def disturb(run: Process, run_folder: Path, server_owner: int, log: Path) -> int:
    """Kill the server that writes `log` in a step, and see it come back with the policy of that step; returns its
    version."""
    try:
        server = wait_for(lambda: server_below(server_owner, log), DEADLINE_SECONDS)
        assert run.wait_until(lambda _: steps_done(run_folder) >= KILLED_AFTER), run.log()
        with httpx.Client(base_url=f"http://127.0.0.1:{port_of(server)}", trust_env=False, timeout=30.0) as http:
            killed = kill_with_requests_in_flight(server, http, run_folder)
            version = steps_done(run_folder)
            assert KILLED_AFTER <= version < STEPS - 1
            assert first_version_after_the_model_folders(http) == str(version)
        assert steps_done(run_folder) == version
        assert run.launcher.wait(DEADLINE_SECONDS) == 0, run.log()
        assert alive(killed) == []
        return version
    finally:
        run.kill()


def check_records(run_folder: Path, unbroken: Path) -> None:
    recorded = rows(run_folder)
    assert [row["step"] for row in recorded] == list(range(1, STEPS + 1))
    assert [row["policy_version"] for row in recorded] == list(range(STEPS))
    assert all(row["groups_failed"] == 0 and row["verdicts_unjudged"] == 0 for row in recorded)
    assert differences(unbroken, run_folder) == []


def interrupt(run: Process) -> tuple[int, list[psutil.Process]]:
    """Ctrl-C at the terminal of a run: its exit code, and those of its processes that are left after some seconds."""
    family = psutil.Process(run.launcher.pid).children(recursive=True)
    os.killpg(run.launcher.pid, signal.SIGINT)
    code = run.launcher.wait(60)
    _, left = psutil.wait_procs(family, timeout=10)
    return code, alive(left)
