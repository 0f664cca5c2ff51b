"""Runs untrusted programs: starts the launcher, talks to what it has started, kills it at the deadline."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pyrl.reward.sandbox import bubblewrap, frames

log = logging.getLogger("pyrl")

LAUNCHER = Path(__file__).with_name("launcher.py")
SETUP_SECONDS = 20.0
"""Deadline for namespaces and mounts, which take some 50 ms on an idle machine."""


class SandboxError(RuntimeError):
    """This machine cannot isolate a program; the text says what is missing and what to do."""


class NotAllowedError(SandboxError):
    """The kernel refused a call that isolates."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one sandbox."""

    memory_bytes: int = 1 << 30
    """Address space of each process."""
    processes: int = 16
    """At a time, threads included."""
    cpu_seconds: int = 60
    """Of each process; the wall limit ends what runs longer."""
    file_bytes: int = 16 << 20
    scratch_bytes: int = 64 << 20
    scratch_files: int = 4096
    output_bytes: int = 8 << 20
    """Printed by one run."""

    def by_kind(self) -> dict[str, int]:
        """Name in `resource` -> limit."""
        return {
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
        }


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of a program as a script left."""

    stdout: str
    problem: str | None
    """Why it failed: `timeout`, the exception's kind and the like. None: it ended by itself, with status 0."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Of a program by tests: `right`, `wrong`, or `unjudged` where the tests are at fault."""

    outcome: str
    reason: str


def run_scripts(program: str, inputs: Sequence[str], seconds: float, *, limits: Limits = LIMITS) -> Iterator[Run]:
    """The program as a script, for one standard input after another, `seconds` of wall time for all together.

    Lazy: what is not asked for is not run. Ends early when the program does not compile or the time is up. Raises
    SandboxError.
    """
    with ExitStack() as stack:
        settings = {"program": program, "output_bytes": limits.output_bytes}
        channel = stack.enter_context(_sandbox("io", limits, isolation(), **settings))
        deadline = time.monotonic() + seconds
        problem = _answer(channel, deadline)["problem"]
        if problem is not None:
            yield Run("", problem)
            return
        for text in inputs:
            left = deadline - time.monotonic()
            try:
                frames.send(channel, {"stdin": text, "seconds": left})
                answer = _answer(channel, deadline + 1.0)  # process 1 keeps the deadline, while it can
            except OSError:
                answer = {"problem": "it killed the process that ran it"}
            yield Run(str(answer.get("stdout", "")), answer["problem"])
            if answer["problem"] == "timeout":
                return


def run_tests(
    program: str, tests: str, seconds: float, *, entry_point: str | None = None, limits: Limits = LIMITS
) -> Judgement:
    """`tests` (trusted Python with asserts; `check(candidate)` is called where it is defined and `entry_point` given)
    against the functions of `program`, each in a sandbox of its own.

    What does not finish within `seconds` of wall time is wrong. Raises SandboxError.
    """
    secret = secrets.token_hex(16)
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
        stack.enter_context(_sandbox("calls", limits, isolation(), pass_on=theirs, program=program))
        judge = {"tests": tests, "entry_point": entry_point, "secret": secret}
        channel = stack.enter_context(_sandbox("tests", limits, isolation(), pass_on=ours, **judge))
        ours.close()
        theirs.close()
        verdict = _answer(channel, time.monotonic() + seconds)
        if "problem" in verdict:
            return Judgement("wrong", verdict["problem"])
        if not secrets.compare_digest(str(verdict.get("secret")), secret):
            return Judgement("wrong", "the verdict does not carry this run's secret")
        return Judgement(verdict["outcome"], verdict["reason"])


def check_available() -> None:
    """Raises SandboxError where programs cannot be isolated here."""
    runs = list(run_scripts("print(6 * 7)", [""], SETUP_SECONDS))
    if [(run.stdout, run.problem) for run in runs] != [("42\n", None)]:
        raise SandboxError(f"a first program failed in the sandbox: {runs}")


@lru_cache(maxsize=1)
def isolation() -> str | None:
    """What isolates: None, the launcher itself; or the path of bubblewrap, where this user may not make namespaces.

    Raises SandboxError where neither can.
    """
    try:
        _try(None)
    except NotAllowedError as error:
        program = bubblewrap.find()
        if program is None:
            raise
        try:
            _try(program)
        except SandboxError as second:
            raise SandboxError(f"{error}. {program}, tried instead, fails too: {second}") from second
        log.info("programs are isolated by %s, since this user may not make namespaces", program)
        return program
    return None


def _try(program: str | None) -> None:
    with _sandbox("io", LIMITS, program, program="", output_bytes=0):
        return


def _answer(channel: socket.socket, deadline: float) -> dict[str, Any]:
    """The next message; a `problem` where it does not come in time, or whoever had to send it has gone."""
    channel.settimeout(max(0.001, deadline - time.monotonic()))
    try:
        return dict(frames.receive(channel))
    except TimeoutError:
        return {"problem": "timeout"}
    except (frames.ClosedError, TypeError, ValueError) as error:
        return {"problem": f"it ended without an answer: {error}"}


@contextmanager
def _sandbox(
    role: str, limits: Limits, by: str | None, /, *, pass_on: socket.socket | None = None, **request: Any
) -> Iterator[socket.socket]:
    """A running role and the channel to it; everything in there is dead afterwards. `by`: as `isolation()`."""
    ours, theirs = socket.socketpair()
    descriptors = [] if pass_on is None else [pass_on.fileno()]
    with ours, theirs:
        process = subprocess.Popen(
            _command(by, theirs.fileno(), limits),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={}, cwd="/",
            pass_fds=[theirs.fileno(), *descriptors], start_new_session=True,
        )  # fmt: skip
        try:
            theirs.close()
            ours.settimeout(SETUP_SECONDS)
            frames.send(ours, {
                "parent": os.getpid(), "isolated": by is not None, "role": role, "limits": limits.by_kind(),
                "visible": visible_files(), "hidden": hidden_folders(), "scratch_bytes": limits.scratch_bytes,
                "scratch_files": limits.scratch_files, "descriptors": descriptors,
                "calls": descriptors[0] if descriptors else None, **request,
            })  # fmt: skip
            _wait_until_ready(ours)
            yield ours
        finally:
            process.kill()  # with it dies process 1 of its namespace, and with that all others
            process.wait()


def _command(by: str | None, channel: int, limits: Limits) -> list[str]:
    if by is None:
        return [sys.executable, "-I", "-S", "-B", str(LAUNCHER), str(channel)]
    visible = [*visible_files(), *linked_files(os.path.realpath(sys.executable))]
    return bubblewrap.command(by, LAUNCHER, [str(channel)], visible, hidden_folders(), limits.scratch_bytes)


def _wait_until_ready(channel: socket.socket) -> None:
    try:
        answer = frames.receive(channel)
    except TimeoutError as error:
        text = f"a sandbox was not ready after {SETUP_SECONDS:.0f} s: is the machine overloaded?"
        raise SandboxError(text) from error
    except (frames.ClosedError, OSError) as error:
        raise SandboxError(f"the sandbox's launcher ended before it was ready: {error}") from error
    if "error" in answer:
        raise NotAllowedError(
            f"this kernel or container does not let programs be isolated: {answer['error']}. Code rewards need user, "
            "pid, mount and network namespaces: allow them (sysctl user.max_user_namespaces above 0, "
            "kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; in a container a "
            "seccomp profile that allows unshare and mount), install bubblewrap 0.8 where it may make them, or run as "
            "root on the host"
        )


@lru_cache(maxsize=1)
def visible_files() -> list[str]:
    """All of the host that a program sees, read-only: Python's standard library and the libraries its modules link."""
    library = os.path.realpath(sysconfig.get_path("stdlib"))
    modules = sorted(map(str, Path(library, "lib-dynload").glob("*.so")))
    return [library, *(path for path in linked_files(*modules) if not path.startswith(library))]


@lru_cache(maxsize=2)
def linked_files(*programs: str) -> list[str]:
    """The libraries, and the loader, that programs or libraries link."""
    linked = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False).stdout
    return sorted(set(re.findall(r"(/\S+) \(0x", linked)))


@lru_cache(maxsize=1)
def hidden_folders() -> list[str]:
    """Of the standard library's folder: what is installed beside it."""
    library = os.path.realpath(sysconfig.get_path("stdlib"))
    return [path for name in ("site-packages", "dist-packages") if os.path.isdir(path := f"{library}/{name}")]


