"""Completions from vLLM servers: many requests in flight, seeds, deadlines, retries, and a check of weight versions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import aiohttp

from pyrl.rollout import vllm_adapter as vllm
from pyrl.rollout.errors import Failure, PolicyVersionMismatch, Retryable, RolloutError
from pyrl.rollout.frozen import FrozenQueue
from pyrl.rollout.open_files import OPEN_REQUESTS, allow_requests
from pyrl.rollout.silence import SilenceDeadline
from pyrl.types import Completion

log = logging.getLogger("pyrl")

T = TypeVar("T")

POLL_SECONDS = 0.5
"""Between two looks at a server that is being restarted."""
CONTROL_SECONDS = 30.0
"""Deadline of a control call (pause, resume, version)."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
"""Before the retries of a request: doubled each time."""


HANGING_SECONDS = 60.0
"""Silence from which a server is taken to hang."""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Samples of one prompt."""

    token_ids: tuple[int, ...]
    samples: int
    seed: int
    """In [0, 2^62); sample i is drawn with `seed` + i."""
    max_tokens: int
    temperature: float = 1.0
    """0: greedy."""
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    """Beside the client's."""


@dataclass(frozen=True, slots=True)
class GroupResult:
    """What became of one request."""

    completions: tuple[Completion, ...]
    """In sample order; empty if the request failed."""
    error: str | None = None
    """Why it failed, the last try's reason."""


@dataclass(slots=True)
class _Call:
    """One call of `generate`."""

    requests: Sequence[GenerateRequest]
    version: int | None
    on_result: Callable[[int, GroupResult], None] | None
    results: dict[int, GroupResult] = field(default_factory=dict)
    """By the request's index."""

    def finish(self, index: int, result: GroupResult) -> None:
        self.results[index] = result
        if self.on_result is not None:
            self.on_result(index, result)


class RolloutClient:
    """A synchronous face over an event loop in a thread of its own. One thread may call it at a time.

    Requests are dealt to the servers in turn; each has at most `open_requests` of them at a time. With `deterministic`,
    each server is paused, given all its requests, and resumed, so that batches depend on the requests alone, and if one
    request fails, all of them are tried again; then only one client may use a server at a time.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        stop_token_ids: Sequence[int],
        request_timeout: float = 300.0,
        max_retries: int = 3,
        recovery_timeout: float = 600.0,
        timeout: float = 3600.0,
        deterministic: bool = False,
        open_requests: int = OPEN_REQUESTS,
        check_servers: Callable[[], None] | None = None,
        section: str = "rollout",
    ) -> None:
        """`request_timeout`: seconds without an answer from a server after which the requests it has are tried again.
        `check_servers` raises when the servers are given up (`ServerPool.raise_if_failed`); asked before a retry.
        `recovery_timeout`: seconds to wait, before a retry, for a server to be back with the expected weights; 0
        where nobody gives a restarted server its weights while the caller waits. `timeout`: deadline of `generate`,
        seconds, retries included. `open_requests`: see `open_files.open_requests`. `section`: of the settings
        that messages name."""
        if not urls:
            raise ValueError("urls is empty: a rollout client needs at least one vLLM server")
        self._urls = tuple(url.rstrip("/") for url in urls)
        self._stop_token_ids = tuple(stop_token_ids)
        self._silence = {url: SilenceDeadline(request_timeout) for url in self._urls}
        self._max_retries = max_retries
        self._recovery_timeout = recovery_timeout
        self._timeout = timeout
        self._section = section
        self._deterministic = deterministic
        self._open_requests = open_requests
        self._check_servers = check_servers or (lambda: None)
        self._recovery: dict[str, asyncio.Lock] = {url: asyncio.Lock() for url in self._urls}
        self._queues = {url: FrozenQueue(url, self._control) for url in self._urls} if deterministic else {}
        self._session: aiohttp.ClientSession | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollout-client", daemon=True)
        self._thread.start()

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        *,
        policy_version: int | None = None,
        on_result: Callable[[int, GroupResult], None] | None = None,
    ) -> list[GroupResult]:
        """One result per request, in order; a request that fails for good has an `error` and no completions.

        `on_result` is told each request's index and result when it is there, in the client's thread; what it raises
        ends the call.

        Every token must come from the weights of `policy_version` (None: any): PolicyVersionMismatch otherwise.
        RolloutError where a server refuses a request (for instance a prompt longer than the model's context), or when
        the deadline has passed.
        """
        return self._run(self._generate(_Call(requests, policy_version, on_result)))

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """log p(token t | tokens before it), for t = 1 ... len - 1 of each token sequence, as the engines compute it.

        Raises RolloutError when a sequence could not be scored.
        """
        return self._run(self._score([tuple(s) for s in sequences]))

    def close(self) -> None:
        """End the connections and the thread."""
        if self._loop.is_closed():
            return
        if self._session is not None:
            self._run(self._session.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C while waiting
            raise

    async def _generate(self, call: _Call) -> list[GroupResult]:
        await self._open()
        count, servers, started = len(call.requests), len(self._urls), asyncio.get_running_loop().time()
        allow_requests(count if self._deterministic else min(count, servers * self._open_requests))
        try:
            async with _first_error(), asyncio.timeout(self._timeout), asyncio.TaskGroup() as tasks:
                for i, url in enumerate(self._urls[:count]):
                    indices = range(i, count, servers)
                    if self._deterministic:
                        tasks.create_task(self._generate_on(url, indices, call))
                        continue
                    shared = iter(indices)
                    for _ in range(min(self._open_requests, len(indices))):
                        tasks.create_task(self._one_by_one(url, shared, call))
        except TimeoutError as error:
            raise RolloutError(
                f"{count - len(call.results)} of {count} prompts have no answer from {', '.join(self._urls)} after "
                f"{self._timeout:g} s ({self._section}.timeout_seconds){self._why_late(call, started)}"
            ) from error
        return [call.results[index] for index in range(count)]

    def _why_late(self, call: _Call, started: float) -> str:
        """A server that answered until the end was given too much; one that fell silent hangs."""
        missing = [i for i in range(len(call.requests)) if i not in call.results]
        late = dict.fromkeys(self._urls[i % len(self._urls)] for i in missing)
        silent = {url: self._silence[url].silent_for(started) for url in late}
        hanging = [f"{url} for {seconds:.0f} s" for url, seconds in silent.items() if seconds >= HANGING_SECONDS]
        if not hanging:
            return "; raise it, or ask for fewer or shorter responses"
        return (
            f", and nothing at all came from {', '.join(hanging)}: look at its log and at what else runs on its "
            f"machine; with a lower {self._section}.request_timeout_seconds its requests are tried again sooner"
        )

    async def _one_by_one(self, url: str, indices: Iterator[int], call: _Call) -> None:
        """The server's next request whenever it has answered one, until all its `indices`, which tasks share, are done.

        A server that is given up is asked no more: what it has not been sent yet fails for the same reason.
        """
        for index in indices:
            lost = await self._generate_on(url, [index], call)
            if lost is not None and (unsent := list(indices)):
                log.warning("%d groups are dropped unsent: %s", len(unsent), lost.reason)
                for each in unsent:
                    call.finish(each, GroupResult((), lost.reason))

    async def _generate_on(self, url: str, indices: Sequence[int], call: _Call) -> Failure | None:
        """Why the server is given up, if it is."""
        bodies = [self._body(order, call.requests[index]) for order, index in enumerate(indices, start=1)]
        answers = await self._ask(url, bodies, call.version, queue=self._queues.get(url))
        for index, answer in zip(indices, answers, strict=True):
            call.finish(index, self._result(url, call.requests[index], answer, call.version))
        return next((a for a in answers if isinstance(a, Failure) and a.is_lasting), None)

    def _body(self, order: int, request: GenerateRequest) -> bytes:
        body = vllm.generate_body(
            request.token_ids,
            samples=request.samples,
            seed=request.seed,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            stop_token_ids=tuple(dict.fromkeys(self._stop_token_ids + request.stop_token_ids)),
            priority=order if self._deterministic else 0,
        )
        return json.dumps(body).encode()

    def _result(
        self, url: str, request: GenerateRequest, answer: dict[str, Any] | Failure, version: int | None
    ) -> GroupResult:
        if isinstance(answer, Failure):
            log.warning("a group is dropped: %s", answer.reason)
            return GroupResult((), answer.reason)
        try:
            completions = vllm.parse_generate(answer)
        except (KeyError, TypeError, ValueError) as error:
            raise RolloutError(f"{url} answered a generate request with something else: {error!r}") from error
        if len(completions) != request.samples:
            raise RolloutError(f"{url} returned {len(completions)} samples, {request.samples} were asked for")
        self._check_versions(url, completions, version)
        return GroupResult(completions)

    @staticmethod
    def _check_versions(url: str, completions: tuple[Completion, ...], version: int | None) -> None:
        wrong = {s.policy_version for c in completions for s in c.version_spans} - {version}
        if version is not None and wrong:
            raise PolicyVersionMismatch(
                f"{url} generated tokens with weights of version {sorted(wrong)}, but the policy is version {version}: "
                "the weight sync before this step did not reach it"
            )

    async def _score(self, sequences: list[tuple[int, ...]]) -> list[list[float]]:
        await self._open()

        async def one(index: int, sequence: tuple[int, ...]) -> list[float]:
            url = self._urls[index % len(self._urls)]
            (answer,) = await self._ask(url, [json.dumps(vllm.score_body(sequence)).encode()], None)
            if isinstance(answer, Failure):
                raise RolloutError(f"{url} could not score a sequence of {len(sequence)} tokens: {answer.reason}")
            return vllm.parse_scores(answer, sequence)

        return await asyncio.gather(*(one(i, s) for i, s in enumerate(sequences)))

    async def _ask(
        self, url: str, bodies: Sequence[bytes], version: int | None, *, queue: FrozenQueue | None = None
    ) -> list[dict[str, Any] | Failure]:
        """Answers to generate requests, tried up to 1 + max_retries times.

        They are tried together: if one fails, all are asked again. With a `queue` the engine starts on
        them together.
        """
        answers = await self._try_all(url, bodies, version, queue)
        for retry in range(self._max_retries):
            if not any(isinstance(answer, Failure) for answer in answers):
                break
            hopeless = await self._recover(url, version)
            if hopeless is not None:
                return [hopeless if isinstance(answer, Failure) else answer for answer in answers]
            await asyncio.sleep(min(FIRST_PAUSE_SECONDS * 2**retry, LONGEST_PAUSE_SECONDS))
            answers = await self._try_all(url, bodies, version, queue)
        return answers

    async def _try_all(
        self, url: str, bodies: Sequence[bytes], version: int | None, queue: FrozenQueue | None
    ) -> list[dict[str, Any] | Failure]:
        failure = None
        freeze = queue.frozen() if queue is not None else contextlib.nullcontext([])
        try:
            async with asyncio.TaskGroup() as group, freeze as tasks:
                for start in range(0, len(bodies), self._open_requests):
                    if start:
                        await queue.wait_enqueued(tasks)
                    part = bodies[start : start + self._open_requests]
                    tasks += [group.create_task(self._try(url, body, version)) for body in part]
        except* Retryable as error:
            failure = Failure(f"{url} {error.exceptions[0]}")
        return [failure] * len(bodies) if failure is not None else [task.result() for task in tasks]

    async def _try(self, url: str, body: bytes, version: int | None) -> dict[str, Any] | Failure:
        address, headers = url + vllm.GENERATE, {"content-type": "application/json"}
        silence, no_limit = self._silence[url], aiohttp.ClientTimeout(total=None)
        try:
            async with silence.running():
                async with self._session.post(address, data=body, headers=headers, timeout=no_limit) as response:
                    text = await response.read()
        except TimeoutError:
            setting = f"{self._section}.request_timeout_seconds"
            return Failure(f"{url} answered no request for {silence.seconds:g} s ({setting})", is_lasting=True)
        except aiohttp.ClientError as error:
            return Failure(f"{address}: {str(error) or type(error).__name__}")
        if response.status >= 500:
            return Failure(f"{address} answered {response.status}: {text[:300].decode(errors='replace')}")
        if response.status != 200:
            raise RolloutError(f"{address} refused a request: {response.status}, {text[:500].decode(errors='replace')}")
        silence.answered()
        try:
            payload = json.loads(text)
            if aborted := vllm.early_end(payload):
                return Failure(f"{address} ended a sample early ({aborted})")
            if version is not None and vllm.was_never_synced(payload):
                return Failure(f"{address} was restarted and answered before it got weights of version {version}")
            return payload
        except (KeyError, TypeError, ValueError) as error:
            raise RolloutError(f"{url} answered a generate request with something else: {error!r}") from error

    async def _recover(self, url: str, version: int | None) -> Failure | None:
        """Before a retry: wait until the server answers and holds the expected weights; a failure if it does not.

        A restarted server holds those of its model folder until it is synced again, and is paused meanwhile.
        """
        deadline = asyncio.get_running_loop().time() + self._recovery_timeout
        async with self._recovery[url]:  # one look for all requests that failed together
            while True:
                self._check_servers()
                try:
                    held = vllm.parse_version((await self._control("GET", url + vllm.WEIGHT_INFO))["weight_version"])
                    paused = (await self._control("GET", url + vllm.IS_PAUSED))["is_paused"]
                    if version in (None, held) and not paused:
                        return None
                    state = "is paused" if paused else f"holds weights of version {held}, not {version}"
                except Retryable as error:
                    state = str(error)
                if asyncio.get_running_loop().time() >= deadline:
                    what = f"{url} {state}, after {self._recovery_timeout:g} s of waiting"
                    return Failure(what, is_lasting=True)
                await asyncio.sleep(POLL_SECONDS)

    async def _control(self, method: str, address: str, params: dict[str, str] | None = None) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=CONTROL_SECONDS)
        try:
            async with self._session.request(method, address, params=params, timeout=timeout) as response:
                if response.status != 200:
                    raise Retryable(f"answers {response.status} to {address}")
                return await response.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Retryable(f"does not answer {address} ({str(error) or type(error).__name__})") from error

    async def _open(self) -> None:
        if self._session is None:
            # No limit on connections: the server queues. It drops one that idled for 5 s, so this side must be first.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0)
            self._session = aiohttp.ClientSession(connector=connector)


class _first_error:
    """Turns a task group's ExceptionGroup into the first error it holds; the other tasks were cancelled for it."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
            if not isinstance(error, BaseExceptionGroup):
                raise error
