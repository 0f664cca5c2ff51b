"""vLLM servers: start, watch, restart, stop.

Every server runs under `guard.py`, which ends it and all its children when this process ends, however it ends. One
thread of the pool watches all servers:

    starting --healthy--> ready --process ends or engine dies--> starting (again) ... --too often--> failed

A restarted server holds the weights of its model folder. `on_restart` is called with its URL before it counts as ready,
so that it can be given the current weights. Where that needs the whole trainer (ipc, nccl) it stays unset: the server's
weight version tells.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal, Self

import psutil
import torch

from pyrl.config import RunConfig
from pyrl.rollout import guard
from pyrl.rollout.control import EngineControl, Health
from pyrl.rollout.vllm_adapter import WEIGHT_BACKENDS, ServerSettings, server_command, server_environment

log = logging.getLogger("pyrl")

WATCH_SECONDS = 0.2
STOP_GRACE_SECONDS = 5.0
UNWELL_SECONDS: dict[Health, float] = {"dead": 10.0, "silent": 120.0}
"""An engine that reports itself dead, or a server that says nothing, for this long is ended and restarted. Silence is
no death: a server that is given many requests beside other work on its cores may say nothing for half a minute."""
MAX_RESTARTS, RESTART_WINDOW_SECONDS = 3, 600.0
PORT_ATTEMPTS = 3
SHOWN_LOG_LINES = 25


class ServerError(RuntimeError):
    """A vLLM server could not be started or kept alive. The text ends with its last log lines."""


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(slots=True)
class VLLMServer:
    """One server process. Driven by its pool's watcher thread."""

    name: str
    command: Callable[[int], list[str]]
    """Port -> argument vector."""
    environment: dict[str, str]
    log_path: Path
    startup_timeout: float
    state: Literal["starting", "ready", "failed"] = "starting"
    error: str = ""
    """Why it failed."""
    port: int = 0
    restarts: list[float] = field(default_factory=list)
    """Times of the restarts, monotonic clock."""
    _process: subprocess.Popen | None = None
    _control: EngineControl | None = None
    _launched: float = 0.0
    _launches: int = 0
    _log_start: int = 0
    _health: Health = "well"
    _health_since: float = 0.0
    _next_health_check: float = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the guard; the server and its children are below it."""
        return self._process.pid if self._process else 0

    def launch(self, *, new_port: bool) -> None:
        """Start the process; returns at once."""
        if new_port:
            self.port = free_port()
        if self._control is not None:
            self._control.close()
        self._control = EngineControl(self.url)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                guard.command_line(grace=STOP_GRACE_SECONDS, command=self.command(self.port)),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal reaches only the trainer
            )
        self.state, self._launched, self._health = "starting", time.monotonic(), "well"
        self._launches += 1

    def exit_code(self) -> int | None:
        return self._process.poll() if self._process else None

    def healthy(self) -> bool:
        return self._control.healthy()

    def starting_too_long(self) -> bool:
        return time.monotonic() - self._launched > self.startup_timeout

    def port_was_taken(self) -> bool:
        return "address already in use" in self._log_text().lower()

    def engine_died(self) -> bool:
        """Whether the API still runs while its engine has been unwell for too long. Asks at most once a second."""
        now = time.monotonic()
        if now < self._next_health_check:
            return False
        self._next_health_check = now + 1.0
        if (health := self._control.health()) != self._health:
            self._health, self._health_since = health, now
        return health != "well" and now - self._health_since > UNWELL_SECONDS[health]

    def terminate(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.terminate()

    def wait_ended(self) -> None:
        """Wait for the guard, which ends last."""
        if self._process:
            try:
                self._process.wait(STOP_GRACE_SECONDS + 5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._control is not None:
            self._control.close()

    def last_log_lines(self) -> str:
        lines = self._log_text().rstrip().splitlines()[-SHOWN_LOG_LINES:]
        return "\n".join(f"  | {line}" for line in lines)

    def _log_text(self) -> str:
        with self.log_path.open("rb") as output:
            output.seek(self._log_start)
            return output.read().decode(errors="replace")


class ServerPool:
    """The servers of one node. A context manager: they are stopped on exit."""

    def __init__(self, servers: list[VLLMServer]) -> None:
        """Use `start`. Launches `servers` and begins to watch them."""
        self.on_restart: Callable[[str], None] | None = None
        self._servers = servers
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._owner = os.getpid()
        for server in servers:
            server.launch(new_port=True)
        # The guards are children of this process whatever thread starts them.
        self._watcher = threading.Thread(target=self._watch, name="vllm-watch", daemon=True)
        self._watcher.start()
        atexit.register(self.stop)

    @classmethod
    def start(
        cls,
        config: RunConfig,
        model: Path,
        log_folder: Path,
        *,
        node: int | None = None,
        device: Literal["cpu", "cuda"] | None = None,
    ) -> Self:
        """Launch `rollout.servers_per_node` servers on `model` and return at once; `wait_ready` waits for them.

        Logs go to `log_folder/server*.log`; `node`, the number of this one where there are several, becomes part of the
        name. `device` None: CUDA where torch sees it. Raises ServerError where the transport's plugin is not installed.
        """
        rollout = config.rollout
        settings = ServerSettings(
            model=Path(model),
            dtype=config.model.dtype,
            max_model_len=config.data.max_prompt_tokens + rollout.max_response_tokens,
            transport=rollout.transport,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            tp=rollout.tp,
            max_num_seqs=rollout.max_num_seqs,
            kv_cache_gib=rollout.kv_cache_gib,
            gpu_memory_utilization=rollout.gpu_memory_utilization,
            threads=rollout.threads,
            deterministic=config.deterministic,
            extra_args=rollout.extra_server_args,
        )
        return cls.from_settings(
            settings,
            log_folder,
            count=rollout.servers_per_node,
            node=node,
            startup_timeout=rollout.startup_timeout_seconds,
        )

    @classmethod
    def from_settings(
        cls,
        settings: ServerSettings,
        log_folder: Path,
        *,
        count: int = 1,
        node: int | None = None,
        startup_timeout: float = 600.0,
    ) -> Self:
        """As `start`, from explicit settings."""
        _check_plugin(settings)
        servers = [
            VLLMServer(
                name=name,
                command=lambda port: server_command(settings, port),
                environment=server_environment(settings),
                log_path=Path(log_folder) / f"{name}.log",
                startup_timeout=startup_timeout,
            )
            for name in _server_names(count, node)
        ]
        return cls(servers)

    @property
    def urls(self) -> tuple[str, ...]:
        """Final once `wait_ready` has returned; a restarted server keeps its URL."""
        return tuple(server.url for server in self._servers)

    def wait_ready(self) -> tuple[str, ...]:
        """Wait until every server is ready; returns their URLs. Raises ServerError with the last log lines."""
        if starting := [str(server.log_path) for server in self._servers if server.state == "starting"]:
            log.info("waiting for vLLM to start, see %s", ", ".join(starting))
        with self._changed:
            while any(server.state != "ready" for server in self._servers):
                self.raise_if_failed()
                if self._stopping.is_set():
                    raise ServerError("the servers were stopped while somebody waited for them")
                self._changed.wait(1.0)
        return self.urls

    def raise_if_failed(self) -> None:
        """ServerError, with the last log lines, if a server was given up."""
        for server in self._servers:
            if server.state == "failed":
                raise ServerError(server.error)

    def stop(self) -> None:
        """End every server and its children. Safe to call twice."""
        if os.getpid() != self._owner or self._stopping.is_set():
            return
        self._stopping.set()
        atexit.unregister(self.stop)
        self._watcher.join()
        for server in self._servers:
            server.terminate()
        for server in self._servers:
            server.wait_ended()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _watch(self) -> None:
        while not self._stopping.wait(WATCH_SECONDS):
            for server in self._servers:
                before = server.state
                try:
                    self._look_at(server)
                except Exception as error:
                    log.exception("watching %s failed", server.name)
                    server.state, server.error = "failed", f"watching {server.name} failed: {error!r}"
                if server.state != before:
                    with self._changed:
                        self._changed.notify_all()

    def _look_at(self, server: VLLMServer) -> None:
        if server.state == "failed":
            return
        code = server.exit_code()
        if server.state == "starting":
            if code is not None:
                self._start_failed(server, code)
            elif server.healthy():
                self._became_healthy(server)
            elif server.starting_too_long():
                server.terminate()
                server.wait_ended()
                self._fail(server, f"did not become healthy within {server.startup_timeout:g} s")
        elif code is not None or server.engine_died():
            self._restart(server, code)

    def _start_failed(self, server: VLLMServer, code: int) -> None:
        if server.port_was_taken() and server._launches < PORT_ATTEMPTS:
            log.warning("%s: port %d was taken, trying another", server.name, server.port)
            # Others know a restarted server by its URL, so only a first start may move.
            server.launch(new_port=not server.restarts)
            return
        self._fail(server, f"{_how_it_ended(code)} before it was healthy")

    def _became_healthy(self, server: VLLMServer) -> None:
        if server.restarts and self.on_restart is not None:
            self.on_restart(server.url)
        server._launches = 0
        server.state = "ready"

    def _restart(self, server: VLLMServer, code: int | None) -> None:
        unwell = {"dead": "its engine is dead", "silent": "it answers no health check"}
        what = unwell[server._health] if code is None else f"it {_how_it_ended(code)}"
        now = time.monotonic()
        recent = [at for at in server.restarts if now - at < RESTART_WINDOW_SECONDS]
        server.state = "starting"  # at once: nobody may take it for ready while it is being ended
        server.terminate()
        server.wait_ended()
        if len(recent) >= MAX_RESTARTS:
            self._fail(server, f"{what}, after {len(recent)} restarts within {RESTART_WINDOW_SECONDS:g} s")
            return
        log.warning("%s (%s): %s; restarting it. Its last log lines:\n%s",
                    server.name, server.url, what, server.last_log_lines())  # fmt: skip
        server.restarts.append(now)
        server.launch(new_port=False)

    def _fail(self, server: VLLMServer, what: str) -> None:
        server.error = (
            f"vLLM {server.name} {what}. Last lines of {server.log_path}:\n{server.last_log_lines() or '  | (empty)'}"
        )
        server.state = "failed"


def _how_it_ended(code: int) -> str:
    """By the exit code of the guard: 128 and the signal, where one ended the server or its engine."""
    names = {number.value: number.name for number in signal.Signals}
    if code - 128 not in names:
        return f"ended with exit code {code}"
    said = f"was ended by {names[code - 128]}"
    if code - 128 != signal.SIGKILL:
        return said
    memory = psutil.virtual_memory()
    return (
        f"{said}, as the kernel does where memory runs out (this machine has {memory.total / 2**30:.0f} GiB, "
        f"{memory.available / 2**30:.0f} GiB of them free now)"
    )


def _server_names(count: int, node: int | None) -> list[str]:
    """Unique among all servers of a run: their logs lie in one folder."""
    stem = "server" if node is None else f"server-node{node}"
    return [f"{stem}-{i}" for i in range(count)] if count > 1 else [stem]


def _check_plugin(settings: ServerSettings) -> None:
    if settings.transport == "shm" and not entry_points(
        group="vllm.general_plugins", name=(backend := WEIGHT_BACKENDS["shm"])
    ):
        raise ServerError(
            f"rollout.transport shm needs the vLLM plugin {backend!r}, which no installed package offers: "
            "install pyrl itself (`pip install --no-build-isolation --no-deps .`)"
        )
