"""The client's retries, deadlines and checks, against a scripted server."""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyrl.rollout.client import GenerateRequest, GroupResult, RolloutClient
from pyrl.rollout.errors import PolicyVersionMismatch, RolloutError
from pyrl.rollout.frozen import SETTLE_SECONDS
from tests.rollout.fake_vllm import FakeVLLM, answer


@pytest.fixture
def fake() -> Iterator[FakeVLLM]:
    with FakeVLLM() as server:
        yield server


def ask(urls: list[str], count: int = 3, *, policy_version: int | None = 0, **options: object) -> list[GroupResult]:
    defaults = {"stop_token_ids": [1], "request_timeout": 5.0, "max_retries": 2, "recovery_timeout": 5.0}
    requests = [GenerateRequest((5, 6), 2, 10 * (1 + i), 4) for i in range(count)]
    with RolloutClient(urls, **(defaults | options)) as client:
        return client.generate(requests, policy_version=policy_version)


def first_tokens(results: list[GroupResult]) -> list[list[int]]:
    return [[c.token_ids[0] for c in r.completions] for r in results]


def test_results_keep_the_order_of_requests_and_samples(fake: FakeVLLM) -> None:
    with FakeVLLM() as other:
        results = ask([fake.url, other.url])
        assert first_tokens(results) == [[10, 11], [20, 21], [30, 31]]
        assert len(fake.bodies) == 2 and len(other.bodies) == 1
    assert all(c.rollout_logprobs == (-0.5, -0.5) for r in results for c in r.completions)
    assert fake.bodies[0]["sampling_params"]["stop_token_ids"] == [1]


def test_a_passing_failure_is_retried_with_the_same_seed(fake: FakeVLLM) -> None:
    fake.script = lambda body, count: (500, "dead") if count < 2 else (200, answer(body))
    assert first_tokens(ask([fake.url], 1)) == [[10, 11]]
    assert len(fake.bodies) == 3 and all(body == fake.bodies[0] for body in fake.bodies)


def test_what_still_fails_is_dropped_with_its_reason(fake: FakeVLLM) -> None:
    fake.script = lambda body, _: (200, answer(body)) if body["sampling_params"]["seed"] != 20 else (503, "no room")
    results = ask([fake.url])
    assert [bool(r.completions) for r in results] == [True, False, True]
    assert "503" in results[1].error and "no room" in results[1].error
    assert sum(b["sampling_params"]["seed"] == 20 for b in fake.bodies) == 3  # 1 + max_retries


def test_an_aborted_sample_is_retried(fake: FakeVLLM) -> None:
    fake.script = lambda body, count: (200, answer(body, finish_reason="stop" if count else "abort"))
    assert first_tokens(ask([fake.url], 1)) == [[10, 11]] and len(fake.bodies) == 2


def test_a_request_has_a_deadline(fake: FakeVLLM) -> None:
    fake.delay = 30.0
    started = time.monotonic()
    (result,) = ask([fake.url], 1, request_timeout=0.3, max_retries=1)
    assert "0.3 s" in result.error and 0.6 <= time.monotonic() - started < 5.0


@pytest.mark.parametrize("deterministic", [False, True])
def test_time_in_the_queue_of_a_server_that_answers_does_not_count(fake: FakeVLLM, deterministic: bool) -> None:
    """Else a deadline drops what comes late in the queue, and with it the prompts whose responses are long."""
    fake.slots, fake.delay = asyncio.Semaphore(1), 0.5
    started = time.monotonic()
    results = ask([fake.url], 5, request_timeout=2.0, max_retries=0, deterministic=deterministic)
    assert first_tokens(results) == [[10, 11], [20, 21], [30, 31], [40, 41], [50, 51]]
    assert time.monotonic() - started > 2.0 and len(fake.bodies) == 5


def test_the_deadline_counts_from_the_last_answer_of_that_server(fake: FakeVLLM) -> None:
    answered: list[float] = []

    def script(body, count):
        answered.append(time.monotonic())
        fake.delay = 0.4 if len(answered) < 2 else 30.0
        return 200, answer(body)

    fake.slots, fake.delay, fake.script = asyncio.Semaphore(1), 0.4, script
    with FakeVLLM() as other:
        other.slots, other.delay = asyncio.Semaphore(1), 0.8  # answers meanwhile
        results = ask([fake.url, other.url], 6, request_timeout=1.5, max_retries=0)
    (error,) = [result.error for result in results if result.error is not None]
    assert error == f"{fake.url} answered no request for 1.5 s (rollout.request_timeout_seconds)"
    assert 1.4 < time.monotonic() - answered[1] < 6.0


def test_a_refused_request_stops_the_run(fake: FakeVLLM) -> None:
    fake.script = lambda *_: (400, "prompt is too long")
    with pytest.raises(RolloutError, match="too long"):
        ask([fake.url])
    assert len(fake.bodies) <= 3  # not retried


def test_another_version_stops_the_run(fake: FakeVLLM) -> None:
    fake.script = lambda body, _: (200, answer(body, version="6"))
    with pytest.raises(PolicyVersionMismatch, match=r"\[6\].*version 7"):
        ask([fake.url], policy_version=7)
    assert first_tokens(ask([fake.url], 1, policy_version=None)) == [[10, 11]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda choice: choice["logprobs"]["content"].pop(),
        lambda choice: choice["logprobs"]["content"][0].update(token_id=99),
        lambda choice: choice["weight_versions"][0].update(end=1),
        lambda choice: choice["weight_versions"].clear(),
        lambda choice: choice.pop("token_ids"),
    ],
)
def test_a_malformed_answer_stops_the_run(fake: FakeVLLM, damage) -> None:
    def script(body, _):
        payload = answer(body)
        damage(payload["choices"][0])
        return 200, payload

    fake.script = script
    with pytest.raises(RolloutError, match="something else"):
        ask([fake.url], 1)


def test_no_retry_before_a_restarted_server_holds_the_policy(fake: FakeVLLM) -> None:
    fake.version = "default"
    synced = []

    def script(body, count):
        return (500, "restarting") if count == 0 else (200, answer(body, version=fake.version))

    def sync() -> None:
        synced.append(len(fake.bodies))
        fake.version = "4"

    fake.script = script
    timer = threading.Timer(1.2, sync)
    timer.start()
    assert first_tokens(ask([fake.url], 1, policy_version=4)) == [[10, 11]]
    timer.join()
    assert synced == [1] and len(fake.bodies) == 2


def test_waiting_for_a_server_is_bounded(fake: FakeVLLM) -> None:
    fake.version = "default"
    fake.script = lambda *_: (500, "dead")
    (result,) = ask([fake.url], 1, policy_version=4, recovery_timeout=0.6)
    assert "version -1, not 4" in result.error and len(fake.bodies) == 1


def test_servers_that_were_given_up_stop_the_run(fake: FakeVLLM) -> None:
    def check() -> None:
        raise RuntimeError("server failed for good")

    fake.script = lambda *_: (500, "dead")
    with pytest.raises(RuntimeError, match="for good"):
        ask([fake.url], check_servers=check)


def test_deterministic_requests_are_ordered_while_the_engine_is_paused(fake: FakeVLLM) -> None:
    ask([fake.url], deterministic=True)
    paths = [path for path, _ in fake.calls]
    assert paths[:2] == ["/load", "/pause"] and paths[-1] == "/resume" and paths[-3:-1] == ["/is_paused"] * 2
    by_seed = {body["sampling_params"]["seed"]: body["priority"] for body in fake.bodies}
    assert by_seed == {10: 1, 20: 2, 30: 3}


@pytest.mark.parametrize("load", [-3, -1, 10])
def test_an_idle_server_that_reports_another_load_is_looked_into_once(fake: FakeVLLM, load: int) -> None:
    """vLLM miscounts requests that leave; what is asked for later must still be seen to arrive."""
    fake.count_down(-load)
    with RolloutClient([fake.url], stop_token_ids=[1], deterministic=True) as client:
        started = time.monotonic()
        for _ in range(2):
            results = client.generate([GenerateRequest((3, 4), 2, seed, 8) for seed in (10, 20)])
            assert first_tokens(results) == [[10, 11], [20, 21]]
    assert 2 * SETTLE_SECONDS < time.monotonic() - started < 3 * SETTLE_SECONDS
    paths = [path for path, _ in fake.calls]
    assert paths.count("/pause") == paths.count("/resume") == 3 and paths.count("/is_paused") == 4
    assert [fake.queries[i]["mode"] for i, path in enumerate(paths) if path == "/pause"] == ["wait", "keep", "keep"]


@pytest.mark.parametrize("seconds", [0.5, 1.5])
def test_requests_that_were_given_up_are_waited_for(fake: FakeVLLM, seconds: float) -> None:
    """Whether they end before their load counts as settled, or only when the engine is asked to finish them."""
    fake.count_down(-2)
    timer = threading.Timer(seconds, fake.count_down, [2])
    timer.start()
    assert first_tokens(ask([fake.url], deterministic=True)) == [[10, 11], [20, 21], [30, 31]]
    assert not timer.is_alive()


def test_a_server_that_others_use_is_refused_in_a_deterministic_run(fake: FakeVLLM, monkeypatch) -> None:
    monkeypatch.setattr("pyrl.rollout.frozen.LOAD_SECONDS", 1.5)
    fake.count_down(-3)
    used = threading.Event()

    def use() -> None:
        for change in itertools.cycle((1, -1)):
            if used.wait(0.2):
                return
            fake.count_down(change)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(use)
        try:
            with pytest.raises(RolloutError, match="a server of their own"):
                ask([fake.url], deterministic=True)
        finally:
            used.set()
    assert not fake.bodies


def test_deterministic_requests_are_all_tried_again_if_one_fails(fake: FakeVLLM) -> None:
    """Else those that are left would run in other batches than in an undisturbed run."""
    fake.script = lambda body, count: (500, "dead") if count == 1 else (200, answer(body))
    assert first_tokens(ask([fake.url], deterministic=True)) == [[10, 11], [20, 21], [30, 31]]
    first, second = fake.bodies[:3], fake.bodies[3:]
    by_seed = sorted(second, key=lambda body: body["sampling_params"]["seed"])
    assert by_seed == sorted(first, key=lambda body: body["sampling_params"]["seed"]) and len(by_seed) == 3
    assert [path for path, _ in fake.calls].count("/pause") == 2


def test_a_request_that_fails_while_others_are_queued_is_not_waited_for(fake: FakeVLLM) -> None:
    def script(body, count):
        if count == 0:
            fake.answer_while_paused = False
            return 500, "dead"
        return 200, answer(body)

    fake.script, fake.answer_while_paused = script, True
    started = time.monotonic()
    assert first_tokens(ask([fake.url], deterministic=True)) == [[10, 11], [20, 21], [30, 31]]
    assert time.monotonic() - started < 5.0


def test_an_engine_that_cannot_be_paused_is_retried_and_then_given_up(fake: FakeVLLM) -> None:
    fake.fail["/pause"] = "engine is dead"
    results = ask([fake.url], deterministic=True)
    assert all("answers 500" in r.error for r in results) and fake.bodies == []
    assert [path for path, _ in fake.calls].count("/pause") == 3  # 1 + max_retries


def test_an_answer_of_a_server_that_was_just_restarted_is_asked_again(fake: FakeVLLM) -> None:
    """It may answer before it is given the policy's weights; another version than the model folder's stops the run."""

    def script(body, count):
        if count == 0:
            return 200, answer(body, version="default")
        return 200, answer(body, version="4")

    fake.version, fake.script = "4", script
    assert first_tokens(ask([fake.url], 1, policy_version=4)) == [[10, 11]] and len(fake.bodies) == 2


def test_no_retry_while_the_server_is_being_given_weights(fake: FakeVLLM) -> None:
    """It has the new version before it is resumed."""
    fake.script = lambda body, count: (500, "restarting") if count == 0 else (200, answer(body))
    fake.pause()
    seen = []
    timer = threading.Timer(1.2, lambda: (seen.append(len(fake.bodies)), fake.resume()))
    fake.answer_while_paused = True
    timer.start()
    assert first_tokens(ask([fake.url], 1)) == [[10, 11]]
    timer.join()
    assert seen == [1] and len(fake.bodies) == 2


def test_a_rollout_has_a_deadline_that_counts_what_is_missing(fake: FakeVLLM) -> None:
    fake.script = lambda body, _: (200, answer(body)) if body["sampling_params"]["seed"] == 20 else (503, "no room")
    started = time.monotonic()
    with pytest.raises(RolloutError, match=r"2 of 3 prompts .* after 0.6 s \(rollout.timeout_seconds\)"):
        ask([fake.url], timeout=0.6, max_retries=50)
    assert time.monotonic() - started < 5.0


def test_a_deadline_that_a_silent_server_missed_names_the_server(fake: FakeVLLM, monkeypatch) -> None:
    """Advice to ask for less would be wrong: it answers nothing."""
    monkeypatch.setattr("pyrl.rollout.client.HANGING_SECONDS", 0.5)
    with FakeVLLM() as other:
        other.delay = 30.0
        with pytest.raises(RolloutError, match=r"1 of 2 prompts .*\(rollout.timeout_seconds\)") as caught:
            ask([fake.url, other.url], 2, timeout=0.9)
    said = str(caught.value)
    assert f"nothing at all came from {other.url} for " in said and "shorter" not in said

    fake.script = lambda body, _: (200, answer(body)) if body["sampling_params"]["seed"] == 10 else (503, "no room")
    monkeypatch.setattr("pyrl.rollout.client.HANGING_SECONDS", 60.0)
    with pytest.raises(RolloutError, match="raise it, or ask for fewer or shorter responses"):
        ask([fake.url], 2, timeout=0.6, max_retries=50)


def test_a_server_has_so_many_requests_at_a_time(fake: FakeVLLM) -> None:
    fake.slots, fake.delay = asyncio.Semaphore(2), 0.01
    with FakeVLLM() as other:
        results = ask([fake.url, other.url], 25, open_requests=4)
        assert (fake.most_open, len(fake.bodies), len(other.bodies)) == (4, 13, 12)
    assert first_tokens(results) == [[10 * (1 + i), 10 * (1 + i) + 1] for i in range(9)] + [
        [10 * (1 + i) % 100, 10 * (1 + i) % 100 + 1] for i in range(9, 25)
    ]


def test_a_deterministic_run_gives_a_server_all_of_them_in_parts(fake: FakeVLLM, monkeypatch) -> None:
    """However long reading all of them takes: what is waited for is the next one."""
    monkeypatch.setattr("pyrl.rollout.frozen.LOAD_SECONDS", 4.0)
    fake.reading, fake.read_seconds = asyncio.Lock(), 0.6
    results = ask([fake.url], 9, deterministic=True, open_requests=8, request_timeout=60.0)
    assert first_tokens(results)[:4] == [[10, 11], [20, 21], [30, 31], [40, 41]] and len(fake.bodies) == 9
    assert fake.most_open == 9 and {body["priority"] for body in fake.bodies[:8]} == set(range(1, 9))


@pytest.mark.parametrize("silent", [False, True])
def test_a_server_that_is_given_up_is_asked_no_more(
    fake: FakeVLLM, silent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Else every batch of requests would wait for it anew. What was not sent yet is one line of the log."""
    fake.script = lambda body, count: (200, answer(body)) if count < 3 else (500, "dead")
    fake.fail["/weight_info"] = "gone"
    fake.delay = 30.0 if silent else 0.0
    with FakeVLLM() as other:
        started = time.monotonic()
        results = ask([fake.url, other.url], 24, open_requests=2, request_timeout=0.5, recovery_timeout=0.5)
        assert len(other.bodies) == 12 and all(r.completions for r in results[1::2])
    answered = 0 if silent else 3
    assert [bool(r.completions) for r in results[::2]] == [True] * answered + [False] * (12 - answered)
    assert len(fake.bodies) == answered + 2
    assert len({r.error for r in results[::2] if r.error}) == 1 and "after 0.5 s of waiting" in results[-2].error
    dropped = [message for message in caplog.messages if "dropped" in message]
    assert len(dropped) == 3 and f"{10 - answered} groups are dropped unsent: {results[-2].error}" in dropped
    assert time.monotonic() - started < 10.0


def test_a_request_that_its_server_cannot_answer_does_not_cost_the_others(fake: FakeVLLM) -> None:
    fake.script = lambda body, _: (200, answer(body)) if body["sampling_params"]["seed"] != 20 else (500, "no room")
    results = ask([fake.url], 6, open_requests=1)
    assert [bool(r.completions) for r in results] == [True, False, True, True, True, True]


def test_answers_cost_the_client_the_same_with_many_open(fake: FakeVLLM) -> None:
    """Counted in calls of functions, which other work on the machine does not change."""

    def calls_per_answer(count: int) -> float:
        calls = 0

        def profile(_frame: object, event: str, _argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        requests = [GenerateRequest((5, 6), 1, i, 4) for i in range(count)]
        with RolloutClient([fake.url], stop_token_ids=[1]) as client:
            client._loop.call_soon_threadsafe(sys.setprofile, profile)
            client.generate(requests)
        assert fake.most_open == count
        return calls / count

    fake.pause()  # until all are there
    fake.full = 40
    few = calls_per_answer(40)
    fake.pause()
    fake.full = 800
    assert calls_per_answer(800) < 1.3 * few


def test_no_url_is_an_error() -> None:
    with pytest.raises(ValueError, match="urls is empty"):
        RolloutClient([], stop_token_ids=[1])
