"""The pool against graders that hang, crash, print and fork. Limits are wide where the machine's speed matters."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pyrl.config import ConfigError
from pyrl.reward import RewardPool, tasks
from pyrl.reward.process import GraderStartError
from tests.own_process import OwnProcess

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bad(monkeypatch):
    """The task name of `bad_graders.load`."""
    monkeypatch.setitem(tasks.LOADERS, "bad", "tests.reward.bad_graders:load")
    return "bad"


def outcomes(verdicts):
    return [verdict.outcome for verdict in verdicts]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_gone(pids, seconds=20):
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, f"still alive: {[p for p in pids if is_alive(p)]}"
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 7, 200])
def test_verdicts_come_in_the_order_of_the_items(bad, workers, count):
    with RewardPool(bad, workers, 30.0) as pool:
        items = [(str(i), str(i if i % 3 else -1)) for i in range(count)]
        verdicts = pool.grade(items)
    assert [v.extracted for v in verdicts] == [str(i) for i in range(count)]
    assert outcomes(verdicts) == ["right" if i % 3 else "wrong" for i in range(count)]


@pytest.mark.parametrize("hang", ["hang", "hang-in-c"])
def test_a_hang_costs_its_limit_and_one_verdict(bad, hang):
    items = [("a", "a")] * 5 + [(hang, "a")] + [("b", "b")] * 5
    with RewardPool(bad, 1, 1.0) as pool:
        start = time.monotonic()
        verdicts = pool.grade(items)
        assert 1.0 <= time.monotonic() - start < 20.0
        assert outcomes(verdicts) == ["right"] * 5 + ["unjudged"] + ["right"] * 5
        assert verdicts[5].reason.startswith("timeout")
        assert outcomes(pool.grade([("a", "a")])) == ["right"]


def test_each_item_has_its_own_clock(bad):
    """A batch may take longer than the limit of one item: of 20 items, 10 go to the worker at once."""
    with RewardPool(bad, 1, 1.0) as pool:
        verdicts = pool.grade([("nap 0.15", "x")] * 20)
    assert outcomes(verdicts) == ["wrong"] * 20


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("raise", "crash: RuntimeError: bad grader"),
        ("sysexit", "crash: SystemExit"),
        ("recurse", "crash: RecursionError"),
        ("memory", "crash: MemoryError"),
        ("exit", "crash: the grader process ended with exit code 3"),
        ("segv", "crash: the grader process ended with signal SIGSEGV"),
    ],
)
def test_a_crash_is_one_unjudged_verdict(bad, response, reason):
    with RewardPool(bad, 1, 30.0) as pool:
        verdicts = pool.grade([("a", "a"), (response, "a"), ("b", "b"), ("c", "d")])
    assert outcomes(verdicts) == ["right", "unjudged", "right", "wrong"]
    assert verdicts[1].reason.startswith(reason)


def test_a_killed_worker_costs_one_retry_and_no_verdict(bad, tmp_path):
    marker = tmp_path / "die"
    marker.touch()
    with RewardPool(bad, 1, 30.0) as pool:
        before = pool.worker_pids
        verdicts = pool.grade([("a", "a"), (f"die-once {marker}", "x"), ("b", "b")])
        assert pool.worker_pids != before
    assert outcomes(verdicts) == ["right", "wrong", "right"]
    assert not marker.exists()


def test_a_worker_killed_between_calls_is_replaced(bad):
    with RewardPool(bad, 2, 30.0) as pool:
        os.kill(pool.worker_pids[0], signal.SIGKILL)
        wait_gone(pool.worker_pids[:1])
        assert outcomes(pool.grade([("a", "a")] * 50)) == ["right"] * 50


def test_a_worker_stopped_between_calls_costs_a_limit_not_the_run(bad):
    """SIGSTOP with more text than a pipe holds: the parent must not block in its write."""
    with RewardPool(bad, 1, 1.0) as pool:
        os.kill(pool.worker_pids[0], signal.SIGSTOP)
        text = "x" * 300_000
        assert outcomes(pool.grade([(text, text), ("a", "a")])) == ["unjudged", "right"]


def test_large_and_hostile_texts_survive_the_pipe(bad):
    texts = ["x" * 200_000, "\ud800 lone surrogate", "\x00\n\r\u2028", "\N{GRINNING FACE}", '"]\n["right"', ""]
    with RewardPool(bad, 1, 30.0) as pool:
        assert outcomes(pool.grade([(text, text) for text in texts])) == ["right"] * len(texts)


def test_what_a_grader_prints_is_not_an_answer(bad):
    with RewardPool(bad, 1, 30.0) as pool:
        verdicts = pool.grade([("print", "a"), ("b", "c")])
    assert [v.reason for v in verdicts] == ["plain", "plain"]
    assert outcomes(verdicts) == ["wrong", "wrong"]


def test_a_grader_cannot_write_files(bad, tmp_path):
    with RewardPool(bad, 1, 30.0) as pool:
        [verdict] = pool.grade([(f"write {tmp_path / 'out'}", "a")])
    assert verdict.outcome == "unjudged"
    assert not (tmp_path / "out").exists() or (tmp_path / "out").stat().st_size == 0


def test_a_worker_sees_no_secret_no_rank_and_no_other_descriptor(bad, monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "RANK", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "secret")
    with (tmp_path / "open").open("w") as inherited:
        os.set_inheritable(inherited.fileno(), True)
        with RewardPool(bad, 2, 30.0) as pool:
            environment, modules = pool.grade([("environment", ""), ("modules", "")])
    assert not {"HF_TOKEN", "RANK", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES"} & set(environment.reason.split())
    assert len(environment.extracted.split()) <= 6  # 0, 1, 2, the two pipes, and the listing itself
    assert modules.reason == ""  # torch and pydantic would make every start slow


def test_a_fresh_grader_process_does_not_import_torch():
    code = (
        "import sys, pyrl.reward, pyrl.reward.worker, pyrl.reward.math\n"
        "print(sorted({'torch', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def use_and_close(harm: bool) -> None:
    """A pool of workers that hang, end and leave children, in this process."""
    tasks.LOADERS["bad"] = "tests.reward.bad_graders:load"
    with RewardPool("bad", 2, 1.0 if harm else 30.0) as pool:
        pool.grade([("a", "a")])
        if harm:
            pool.grade([("child", ""), ("hang", ""), ("exit", ""), ("a", "a")])
        assert all(map(is_alive, pool.worker_pids))
    with pytest.raises(RuntimeError, match="closed"):
        pool.grade([("a", "a")])
    pool.close()


def test_close_leaves_no_process_and_no_descriptor():
    with OwnProcess() as process:
        process.run(use_and_close, harm=False)  # what is made once for each process, the spawner, exists after this
        before = process.held()
        process.run(use_and_close, harm=True)
        assert process.held() == before
        assert before.children == ()


def test_a_forgotten_pool_is_killed(bad):
    pool = RewardPool(bad, 1, 30.0)
    pids = pool.worker_pids
    del pool
    wait_gone(pids)


@pytest.mark.parametrize("busy", [False, True])
def test_workers_die_with_their_parent(busy):
    code = (
        "import sys, time, threading\n"
        "from pyrl.reward import RewardPool, tasks\n"
        "tasks.LOADERS['bad'] = 'tests.reward.bad_graders:load'\n"
        "pool = RewardPool('bad', 2, 600.0)\n"
        f"if {busy}: threading.Thread(target=pool.grade, args=([('hang-in-c', '')] * 4,), daemon=True).start()\n"
        "time.sleep(0.5); print(*pool.worker_pids, flush=True); time.sleep(600)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(map(is_alive, pids))
        parent.kill()
        wait_gone(pids)


def test_workers_outlive_the_thread_that_made_the_pool(bad):
    """The kernel's parent-death signal follows the thread that started a process, not its process."""
    made = []
    thread = threading.Thread(target=lambda: made.append(RewardPool(bad, 1, 30.0)))
    thread.start()
    thread.join()
    with made[0] as pool:
        pids = pool.worker_pids
        time.sleep(0.2)
        assert outcomes(pool.grade([("a", "a")])) == ["right"]
        assert pool.worker_pids == pids


def test_threads_take_turns(bad):
    results = {}
    with RewardPool(bad, 2, 30.0) as pool:

        def work(name):
            results[name] = pool.grade([(f"{name}-{i}", f"{name}-{i}") for i in range(40)])

        threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    for name in range(6):
        assert [v.extracted for v in results[name]] == [f"{name}-{i}" for i in range(40)]
        assert set(outcomes(results[name])) == {"right"}


def test_a_fork_may_not_use_its_parents_pool(bad):
    with RewardPool(bad, 1, 30.0) as pool:
        pid = os.fork()
        if pid == 0:
            try:
                pool.grade([("a", "a")])
            except RuntimeError as error:
                os._exit(0 if "belongs to process" in str(error) else 1)
            os._exit(2)
        assert os.waitpid(pid, 0)[1] == 0
        assert outcomes(pool.grade([("a", "a")])) == ["right"]


@pytest.mark.parametrize(
    "task",
    ["maths", "", "math:", "math:x", "countdown:3", "reasoning_gym", "reasoning_gym:", "reasoning_gym:chain_sun"],
)
def test_an_unknown_task_names_the_known_ones(task):
    with pytest.raises(ConfigError) as caught:
        RewardPool(task, 1, 5.0)
    text = str(caught.value)
    assert task in text
    wanted = (
        ["chain_sum", "word_ladder"]
        if task == "reasoning_gym:chain_sun"
        else ["math", "countdown", "reasoning_gym:NAME"]
    )
    assert all(name in text for name in wanted)


@pytest.mark.parametrize(("workers", "timeout"), [(0, 5.0), (1, 0.0), (1, -1.0), (1, float("nan")), (1, float("inf"))])
def test_numbers_out_of_range_are_refused(workers, timeout):
    with pytest.raises(ConfigError, match=r"reward\.(workers|timeout_seconds)"):
        RewardPool("countdown", workers, timeout)


@pytest.mark.parametrize(("loader", "text"), [("load_failing", "no such library"), ("load_dying", "exit code 7")])
def test_a_grader_that_cannot_be_loaded_says_why(bad, monkeypatch, loader, text):
    monkeypatch.setitem(tasks.LOADERS, "bad", f"tests.reward.bad_graders:{loader}")
    with pytest.raises(GraderStartError, match=text):
        RewardPool(bad, 1, 5.0)
