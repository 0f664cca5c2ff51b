"""Programs that attack: each fails safely and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyrl.reward import sandbox
from pyrl.reward.sandbox import Limits, Run, SandboxError, bubblewrap, check_available, codec, run_scripts, run_tests
from pyrl.reward.sandbox import run as sandbox_run
from pyrl.reward.sandbox.launcher import OUTSIDE_IDS
from pyrl.reward.sandbox.run import Judgement, NotAllowedError
from tests.own_process import OwnProcess

SECONDS = 20.0
"""Far above what a program here needs on a busy machine: what must time out is given less."""
TESTS = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9\n"


def scripts(program: str, inputs: list[str], seconds: float, **limits: int) -> list[Run]:
    return list(run_scripts(program, inputs, seconds, limits=Limits(**limits)))


def files_of_programs() -> set[str]:
    """What they have in the folders that anybody may write to. As root: each runs as a user of no account."""
    found = set()
    for folder in ("/tmp", "/dev/shm"):
        for entry in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):  # another process's, gone meanwhile
                if entry.stat(follow_symlinks=False).st_uid in range(*OUTSIDE_IDS):
                    found.add(entry.path)
    return found


class Sandboxes:
    """Runs programs from a process that does nothing else."""

    def __init__(self, process: OwnProcess) -> None:
        self.process = process

    def scripts(self, program: str, inputs: list[str], seconds: float = SECONDS, **limits: int) -> list[Run]:
        return self.process.run(scripts, program, inputs, seconds, **limits)

    def run(self, program: str, stdin: str = "", seconds: float = SECONDS, **limits: int) -> Run:
        (result,) = self.scripts(program, [stdin], seconds, **limits)
        return result

    def tests(self, program: str, tests: str, seconds: float = SECONDS, entry_point: str | None = None) -> Judgement:
        return self.process.run(run_tests, program, tests, seconds, entry_point=entry_point)

    def judge(self, program: str, seconds: float = SECONDS) -> str:
        return self.tests(program, TESTS, seconds, "square").outcome


@pytest.fixture(scope="module")
def own_process(namespaces: None) -> Iterator[OwnProcess]:
    with OwnProcess() as process:
        process.run(check_available)  # what is made once for each process is there from now on
        yield process


@pytest.fixture
def box(own_process: OwnProcess) -> Iterator[Sandboxes]:
    """No process, mount, file or descriptor more than before the test."""
    before, files = own_process.held(), files_of_programs()
    assert before.children == ()
    yield Sandboxes(own_process)
    assert own_process.held() == before
    assert files_of_programs() <= files


def test_programs_run(box: Sandboxes) -> None:
    runs = box.scripts("print(int(input()) ** 2)", ["3\n", "-4", "x"])
    assert runs == [Run("9\n", None), Run("16\n", None), Run("", "it ended with status 1")]
    assert box.judge("def square(x): return x * x") == "right"
    assert box.judge("def square(x): return x + x") == "wrong"


def test_the_standard_library_works(box: Sandboxes) -> None:
    program = "import math, json, re, itertools, collections, heapq, decimal, fractions, random, hashlib, zlib\n"
    assert box.run(program + "print(math.comb(10, 3), hashlib.sha256(b'').hexdigest()[:4])") == Run("120 e3b0\n", None)


def test_a_run_does_not_see_the_one_before(box: Sandboxes) -> None:
    program = "import os\nprint(sorted(os.listdir('.')))\nos.makedirs('a/b'); open('a/b/c', 'w').write('x')"
    assert [each.stdout for each in box.scripts(program, ["", ""])] == ["[]\n", "[]\n"]


def test_a_program_that_does_not_compile(box: Sandboxes) -> None:
    (only,) = box.scripts("print(", ["", ""])
    assert only.problem.startswith("it does not compile")
    assert box.judge("def square(:") == "wrong"


def test_an_infinite_loop_ends_at_the_limit(box: Sandboxes) -> None:
    start = time.monotonic()
    assert box.run("while True: pass", seconds=1.0) == Run("", "timeout")
    assert box.judge("while True: pass", seconds=1.0) == "wrong"
    assert box.judge("def square(x):\n    while True: pass", seconds=1.0) == "wrong"
    assert time.monotonic() - start < 3 * (1.0 + SECONDS / 2)


def test_an_infinite_print_ends(box: Sandboxes) -> None:
    result = box.run("while True: print('x' * 10000)", output_bytes=1 << 20)
    assert result.problem == "it printed more than 1048576 bytes"


def test_a_memory_hog_ends(box: Sandboxes) -> None:
    assert box.run("x = bytearray(1 << 31)\nprint('had it')").problem == "it ended with status 1"
    big = "import os\nopen('big', 'wb').write(b'x' * (1 << 25))\nprint('had it')"
    assert box.run(big, file_bytes=1 << 20).stdout == ""
    fill = "for i in range(100): open(f'{i}', 'wb').write(b'x' * (1 << 20))\nprint('had it')"
    assert box.run(fill, scratch_bytes=8 << 20).stdout == ""


FORK_BOMB = """
import os, time
made = 0
for _ in range(200):
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
    except OSError:
        break
print(made)
"""


def test_a_fork_bomb_is_held_whoever_runs_it(box: Sandboxes) -> None:
    made = int(box.run(FORK_BOMB, seconds=6.0, processes=16).stdout)  # which it says at once; its children stay
    assert 5 <= made <= 16  # process 1 and the program count too
    assert box.judge("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", seconds=2.0) == "wrong"


@pytest.mark.parametrize(
    "call",
    [
        "socket.create_connection(('127.0.0.1', PORT), 2)",
        "socket.create_connection(('1.1.1.1', 53), 2)",
        "socket.socket(socket.AF_UNIX).connect('\\0pyrl-test')",
        "socket.socket(socket.AF_UNIX).connect('PATH')",
    ],
)
def test_there_is_no_network(box: Sandboxes, call: str, tmp_path: Path) -> None:
    listeners = [socket.create_server(("127.0.0.1", 0)), *(socket.socket(socket.AF_UNIX) for _ in range(2))]
    listeners[1].bind("\0pyrl-test")
    listeners[2].bind(str(tmp_path / "s"))
    for listener in listeners:
        listener.listen()
    call = call.replace("PORT", str(listeners[0].getsockname()[1])).replace("PATH", str(tmp_path / "s"))
    program = f"import socket\ntry:\n    {call}\n    print('connected')\nexcept OSError as e:\n    print('refused')"
    result = box.run(program)
    for listener in listeners:
        listener.close()
    assert result == Run("refused\n", None)


def test_no_file_of_the_host_is_visible(box: Sandboxes, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the key")
    os.chmod(secret, 0o666)
    for path in (secret, "/etc/passwd", "/proc/self/environ", "/proc/1/mem", "/sys", "/home", "/bin/sh", __file__):
        result = box.run(f"import os\nprint(os.path.exists({str(path)!r}))")
        assert result == Run("False\n", None), path
    assert box.run("import os\nprint(sorted(os.environ))") == Run("[]\n", None)
    assert box.run("import pytest").problem == "it ended with status 1"  # what is installed beside the standard library


def test_nothing_can_be_written_outside(box: Sandboxes, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    stdlib = os.path.dirname(os.__file__)
    for path in (f"{tmp_path}/x", "/x", "/tmp/x", "/dev/x", f"{stdlib}/x.py", f"{stdlib}/os.py", "/scratch/../x"):
        program = f"try:\n    open({path!r}, 'a').write('x'); print('written')\nexcept OSError: print('refused')"
        assert box.run(program) == Run("refused\n", None), path
    link = f"import os\nos.symlink({str(tmp_path)!r}, 'link')\nopen('link/x', 'w')"
    assert box.run(link).problem == "it ended with status 1"
    assert sorted(tmp_path.iterdir()) == before


PRIVILEGED = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
found = []
for name, call in {
    "user namespace": lambda: libc.unshare(0x10000000),
    "mount namespace": lambda: libc.unshare(0x00020000),
    "mount": lambda: libc.mount(b"none", b"/scratch", b"tmpfs", 0, None),
    "remount": lambda: libc.mount(b"none", b"/", None, 32 | 4096, None),
    "unmount": lambda: libc.umount2(b"/scratch", 2),
    "chroot": lambda: libc.chroot(b"."),
    "root": lambda: libc.setresuid(0, 0, 0),
    "host name": lambda: libc.sethostname(b"x", 1),
}.items():
    if call() == 0:
        found.append(name)
print(found, os.getuid(), os.getgid(), os.getgroups())
"""


def test_no_privilege_is_left_and_none_can_be_had(box: Sandboxes) -> None:
    stdout = box.run(PRIVILEGED).stdout
    assert stdout.startswith("[] 1000 1000 "), stdout
    if os.geteuid() == 0:
        assert stdout.endswith(" []\n")


def test_killing_everyone_reaches_nobody_outside(box: Sandboxes) -> None:
    everyone = "try:\n    os.kill(-1, signal.SIGKILL)\nexcept ProcessLookupError:\n    print('nobody')"
    assert box.run(f"import os, signal\n{everyone}") == Run("nobody\n", None)
    process_1 = "import os, signal\nos.kill(1, signal.SIGKILL)\nprint('alive')"
    assert box.run(process_1).stdout == "alive\n"  # the first of a pid namespace is immune


def test_a_daemon_does_not_outlive_the_run(box: Sandboxes) -> None:
    program = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in range(3): os.close(fd)
        while True: time.sleep(1)
    os._exit(0)
print('done')
"""
    start = time.monotonic()
    assert box.scripts(program, ["", ""]) == [Run("done\n", None)] * 2
    assert time.monotonic() - start < SECONDS


FORGE = """
import os, json, struct
def forge(**message):
    body = json.dumps(message).encode()
    for fd in range(3, 1024):
        try:
            os.write(fd, (struct.pack('!I', len(body)) + body) * 9)
        except OSError:
            pass
"""
CHEATS = {
    "exit": "import sys\nsys.exit(0)",
    "exit inside": "import sys\ndef square(x): sys.exit(0)",
    "hard exit": "import os\ndef square(x): os._exit(0)",
    "equal to all": "class E:\n    def __eq__(self, o): return True\ndef square(x): return E()",
    "an int equal to all": "class E(int):\n    def __eq__(self, o): return True\ndef square(x): return E(0)",
    "a list equal to all": "class E(list):\n    def __eq__(self, o): return True\ndef square(x): return E()",
    "no assert": "import builtins\nbuiltins.AssertionError = KeyError\ndef square(x): return 0",
    "no checks": "import sys\nfor m in list(sys.modules.values()): m.check = lambda c: None\ndef square(x): return 0",
    "assertion of its own": "def square(x): raise AssertionError('fine')",
    "a patched codec": "import sys\nsys.modules['codec'].encode = lambda v: ['int', '4']\ndef square(x): return 0",
    "a forged verdict": FORGE + "forge(secret='', outcome='right', reason='')\ndef square(x): return 0",
    "a forged answer": FORGE + "def square(x):\n    forge(value=['int', '4'], outcome='right')\n    return 0",
    "noise": "import os\nfor fd in range(3, 1024):\n    try: os.write(fd, b'\\xff' * 4096)\n    except OSError: pass",
    "a huge value": "def square(x): return 'x' * (1 << 28)",
    "a deep value": "def square(x):\n    v = []\n    for _ in range(100000): v = [v]\n    return v",
    "a generator": "def square(x): return (i for i in range(9))",
    "nothing": "pass",
}


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_wrong(box: Sandboxes, name: str) -> None:
    assert box.judge(CHEATS[name]) == "wrong"


def test_tests_at_fault_are_unjudged(box: Sandboxes) -> None:
    found = box.tests("def f(x): return x", "assert f(1) ==")
    assert found.outcome == "unjudged" and found.reason.startswith("the tests do not compile")


@pytest.mark.parametrize(
    "value",
    [0, -(1 << 5000), True, None, 1.5, float("inf"), -0.0, 2 + 3j, "a\ud800\0é", b"\0\xff", [1, (2, {3})],
     {"a": {1: [None]}}, frozenset({1}), [], (), set()],
)  # fmt: skip
def test_plain_values_cross_unchanged(value: object) -> None:
    back = codec.decode(json.loads(json.dumps(codec.encode(value))))
    assert repr(back) == repr(value) and type(back) is type(value)


def test_exceptions_cross_as_their_built_in_kind(box: Sandboxes) -> None:
    program = "class Mine(ValueError): pass\ndef f(x): raise Mine('no')"
    tests = "try:\n    f(1)\nexcept ValueError as e:\n    assert str(e) == 'no'\nelse:\n    assert False"
    assert box.tests(program, tests).outcome == "right"


def judged_in_threads(program: str, threads: int) -> list[str]:
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda _: run_tests(program, TESTS, SECONDS, entry_point="square").outcome, range(threads))
        return list(found)


def test_many_threads_at_once(box: Sandboxes) -> None:
    assert box.process.run(judged_in_threads, "def square(x): return x * x", 6) == ["right"] * 6


NOBODY = 65534
AS_NOBODY = """
import sys
sys.path.insert(0, "{folder}")
from sandbox import run
if {by!r}:
    run.isolation = lambda: {by!r}
assert run.isolation() == {by!r}
program = "import os\\nprint(int(input()) ** 2, os.path.exists('/etc/passwd'), os.getuid())"
found = list(run.run_scripts(program, ["3"], 30.0))
print(found[0])
for attack, seconds in (({bomb!r}, 6.0), ({escapes!r}, 30.0)):
    print(list(run.run_scripts(attack, [""], seconds))[0].stdout.strip())
print(run.run_tests("import sys; sys.exit(0)", "def check(f): pass", 30.0, entry_point="f").outcome)
"""
ESCAPES = """
import ctypes, os, socket
libc = ctypes.CDLL(None)
def connects():
    try:
        socket.create_connection(("1.1.1.1", 80), 3)
    except OSError:
        return False
    return True
def writes(path):
    try:
        open(path, "w")
    except OSError:
        return False
    return True
print(connects(), libc.unshare(0x10000000) == 0, libc.mount(b"none", b"/scratch", b"tmpfs", 0, None) == 0,
      [path for path in ("/x", "/usr/x", "/dev/x", "/launcher/x") if writes(path)], os.path.exists("/proc/self"))
"""


@pytest.mark.usefixtures("namespaces")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("way", ["own", "bubblewrap"])
def test_a_user_without_rights_has_the_same_sandbox(tmp_path: Path, way: str) -> None:
    """By namespaces that it may make itself, or by bubblewrap; with Debian's Python, which every user may read."""
    by = shutil.which("bwrap") if way == "bubblewrap" else None
    if by is None and way == "bubblewrap":
        pytest.skip("bubblewrap is not installed")
    python = shutil.which("python3", path="/usr/bin")
    if python is None:
        pytest.skip("needs /usr/bin/python3, which every user may read")
    folder = Path("/var/tmp") / f"pyrl-test-{os.getpid()}"
    try:
        shutil.copytree(Path(sandbox.__file__).parent, folder / "sandbox")
        for file in (folder / "sandbox").glob("*.py"):
            file.write_text(file.read_text().replace("from pyrl.reward.sandbox", "from sandbox"))
        os.chmod(folder, 0o755)
        done = subprocess.run(
            [python, "-I", "-B", "-c", AS_NOBODY.format(folder=folder, bomb=FORK_BOMB, escapes=ESCAPES, by=by)],
            user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, env={}, timeout=120,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr
    first, made, escaped, verdict = done.stdout.splitlines()
    assert first == "Run(stdout='9 False 1000\\n', problem=None)"
    assert 5 <= int(made) <= 16
    assert escaped == "False False False [] False" and verdict == "wrong"


def test_bubblewrap_is_tried_where_namespaces_of_our_own_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, refused = [], {None}
    kind = NotAllowedError

    def attempt(by: str | None) -> None:
        tried.append(by)
        if by in refused:
            raise kind(f"{by} may not")

    monkeypatch.setattr(sandbox_run, "_try", attempt)
    monkeypatch.setattr(bubblewrap, "find", lambda: "/usr/bin/bwrap")
    choose = sandbox_run.isolation.__wrapped__  # asks anew each time
    assert choose() == "/usr/bin/bwrap" and tried == [None, "/usr/bin/bwrap"]
    refused.add("/usr/bin/bwrap")
    with pytest.raises(SandboxError, match=r"None may not\. /usr/bin/bwrap, tried instead, fails too: .* may not"):
        choose()
    monkeypatch.setattr(bubblewrap, "find", lambda: None)
    with pytest.raises(SandboxError, match=r"^None may not$"):
        choose()
    tried.clear()
    kind = SandboxError  # an overloaded machine, for instance
    monkeypatch.setattr(bubblewrap, "find", lambda: "/usr/bin/bwrap")
    with pytest.raises(SandboxError, match=r"^None may not$"):
        choose()
    assert tried == [None]
    refused.clear()
    assert choose() is None


REFUSED = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000) == 0  # a user namespace in which no other may be made
open("/proc/self/setgroups", "w").write("deny")
open("/proc/self/uid_map", "w").write("1000 0 1")
open("/proc/self/gid_map", "w").write("1000 0 1")
open("/proc/sys/user/max_user_namespaces", "w").write("0")
from pyrl.reward import RewardPool
RewardPool("code", 1, 30.0)
"""


@pytest.mark.usefixtures("namespaces")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to take the right away")
def test_where_programs_cannot_be_isolated_rewards_refuse_to_start() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "ConfigError: reward.task 'code': this kernel or container does not let programs be isolated" in done.stderr
    assert "max_user_namespaces" in done.stderr
