"""The deadline of a silent server, on a clock that jumps to the next timer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrl.rollout.silence import SilenceDeadline

SECONDS = 10.25
"""No sum of it and of the whole and half seconds below is another such time."""


class JumpingClock(asyncio.SelectorEventLoop):
    """Time passes when nothing is left to do but to wait, and then all at once."""

    def __init__(self) -> None:
        self.now, self.timers_set = 0.0, 0
        super().__init__()

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, *args: Any, **options: Any) -> asyncio.TimerHandle:
        self.timers_set += 1
        return super().call_at(when, *args, **options)

    def live_timers(self) -> list[asyncio.TimerHandle]:
        return [handle for handle in self._scheduled if not handle.cancelled()]

    def _run_once(self) -> None:
        if not self._ready and (waiting := self.live_timers()):
            self.now = max(self.now, min(handle.when() for handle in waiting))
        super()._run_once()


def run(work: Callable[[JumpingClock], Coroutine[Any, Any, Any]]) -> Any:
    loop = JumpingClock()
    try:
        return loop.run_until_complete(work(loop))
    finally:
        loop.close()


def expected_end(sent: float, ends: float, answers: list[float]) -> tuple[str, float]:
    """How and when a request ends that would end by itself at `ends`, looked at without any timer."""
    due = sent + SECONDS
    for answer in sorted(answers):
        if sent < answer < due:
            due = answer + SECONDS
    return ("silent", due) if due < ends else ("answered", ends)


@given(
    requests=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), min_size=1, max_size=8),
    answers=st.lists(st.integers(0, 120), max_size=8),
)
def test_each_request_ends_when_the_server_was_silent_since_it_was_sent_or_since_an_answer(
    requests: list[tuple[int, int]], answers: list[int]
) -> None:
    """`requests`: when it is sent, how long it takes; `answers`: the times of others, half a second later."""

    async def work(loop: JumpingClock) -> list[tuple[str, float]]:
        silence = SilenceDeadline(SECONDS)

        async def ask(sent: int, takes: int) -> tuple[str, float]:
            await asyncio.sleep(sent)
            try:
                async with silence.running():
                    await asyncio.sleep(takes)
            except TimeoutError:
                return "silent", loop.time()
            return "answered", loop.time()

        for answer in answers:
            loop.call_at(answer + 0.5, silence.answered)
        ends = await asyncio.gather(*(ask(*request) for request in requests))
        await asyncio.sleep(200.0)  # what was set is over
        assert loop.live_timers() == []
        return ends

    times = [answer + 0.5 for answer in answers]
    assert run(work) == [expected_end(sent, sent + takes, times) for sent, takes in requests]


def test_the_last_request_takes_the_timer_with_it() -> None:
    async def work(loop: JumpingClock) -> None:
        silence = SilenceDeadline(SECONDS)
        for _ in range(2):
            async with silence.running():
                assert len(loop.live_timers()) == 1
                async with silence.running():
                    silence.answered()
                assert len(loop.live_timers()) == 1
            assert loop.live_timers() == []

    run(work)


def test_one_server_is_silent_while_another_answers() -> None:
    async def work(loop: JumpingClock) -> None:
        silent, talking = SilenceDeadline(SECONDS), SilenceDeadline(SECONDS)

        async def ask(silence: SilenceDeadline) -> float:
            async with silence.running():
                for _ in range(5):
                    await asyncio.sleep(9.0)
                    talking.answered()
            return loop.time()

        ends = await asyncio.gather(ask(talking), ask(silent), return_exceptions=True)
        assert ends[0] == 45.0 and isinstance(ends[1], TimeoutError)

    run(work)


def test_a_cancelled_request_is_cancelled_and_not_late() -> None:
    async def work(loop: JumpingClock) -> None:
        silence = SilenceDeadline(SECONDS)

        async def ask() -> None:
            async with silence.running():
                await asyncio.sleep(100.0)

        task = asyncio.create_task(ask())
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert loop.live_timers() == []

    run(work)


def test_what_is_tried_again_has_a_deadline_again() -> None:
    async def work(loop: JumpingClock) -> list[float]:
        silence, ends = SilenceDeadline(SECONDS), []
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with silence.running():
                    await asyncio.sleep(100.0)
            ends.append(loop.time())
        return ends

    assert run(work) == [SECONDS, 2 * SECONDS, 3 * SECONDS]


def steps_of_answers(opened: int, answers: int) -> tuple[int, int]:
    """Calls of functions, and timers set, while one request after the other is answered and another one sent, a tenth
    of a second apart, with `opened` open."""

    async def work(loop: JumpingClock) -> tuple[int, int]:
        silence, calls = SilenceDeadline(SECONDS), 0
        ends = [asyncio.Event() for _ in range(opened + answers)]

        async def ask(end: asyncio.Event) -> None:
            async with silence.running():
                await end.wait()
            silence.answered()

        def count(_frame: object, event: str, _argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        tasks = [asyncio.create_task(ask(end)) for end in ends[:opened]]
        await asyncio.sleep(0.1)
        timers = loop.timers_set
        sys.setprofile(count)
        try:
            for i in range(answers):
                ends[i].set()
                tasks.append(asyncio.create_task(ask(ends[opened + i])))
                await asyncio.sleep(0.1)
        finally:
            sys.setprofile(None)
        counted, timers = calls, loop.timers_set - timers - answers  # each sleep sets one
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return counted, timers

    return run(work)


def test_an_answer_costs_the_same_with_20_000_open() -> None:
    few, few_timers = steps_of_answers(500, 60)
    many, many_timers = steps_of_answers(20_000, 60)
    assert many <= 1.01 * few
    assert few_timers == many_timers <= 2 + 60 * 0.1 / SECONDS  # one a silence, not one an answer
