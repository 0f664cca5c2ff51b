"""Samples from the same vLLM servers and client as in training, each stored when it is finished."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from pyrl.data.tokenizer import stop_token_ids
from pyrl.evaluation.benchmarks import Question
from pyrl.evaluation.config import EvaluationConfig
from pyrl.evaluation.errors import EvaluationError
from pyrl.evaluation.servers import check_given, check_positions, start_servers
from pyrl.evaluation.store import Sample, SampleFile, read_samples
from pyrl.ops.counter import derive_seed, mix
from pyrl.rollout.client import GenerateRequest, GroupResult, RolloutClient
from pyrl.rollout.errors import RolloutError
from pyrl.rollout.open_files import allow_requests, open_requests
from pyrl.rollout.server import ServerError, ServerPool
from pyrl.telemetry.progress import StepProgress

KEPT = "all finished samples are kept: call the same command again to go on"
SECONDS_BETWEEN_LINES = 5.0


def sample_seed(seed: int, benchmark: str, question: str, sample: int) -> int:
    """In [0, 2^62), of the names alone: neither other questions nor the order change what is drawn."""
    name = int.from_bytes(hashlib.sha256(f"{benchmark}\0{question}".encode()).digest()[:8], "little")
    return mix(mix(derive_seed(seed, step=0, mini_batch=0, purpose="evaluation"), name), sample) >> 2


def generate_missing(
    config: EvaluationConfig, folder: Path, questions: list[Question], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Draw and store every sample that the folder lacks.

    Raises EvaluationError, with all finished samples stored, when servers fail, answer something else, or the disk is
    full; ConfigError for servers that could not hold the longest response.
    """
    done = read_samples(folder)
    asked = [
        (question, sample)
        for question in questions
        for sample in range(config.benchmarks[question.benchmark].samples)
        if (question.benchmark, question.id, sample) not in done
    ]
    if not asked:
        return
    server = config.server
    allow_requests(min(len(asked), (len(server.urls) or server.count) * open_requests(server.max_num_seqs)))
    tokens = max(len(q.token_ids) + config.benchmarks[q.benchmark].max_tokens for q in questions)
    check_positions(config, tokens)
    with ExitStack() as stack:
        stack.enter_context(_failures_keep_samples())
        if server.urls:
            check_given(config, tokens)
            pool = None
        else:
            pool = stack.enter_context(start_servers(config, folder, tokens))
        client = stack.enter_context(_client(config, pool, tokenizer.eos_token_id))
        file = SampleFile(folder)
        stack.callback(file.close)
        _draw(config, client, asked, file, tokenizer, done=len(done))


def _draw(
    config: EvaluationConfig,
    client: RolloutClient,
    asked: list[tuple[Question, int]],
    file: SampleFile,
    tokenizer: PreTrainedTokenizerBase,
    *,
    done: int,
) -> None:
    stops = stop_token_ids(config.model, tokenizer)
    requests = [sample_request(config, question, sample, stops) for question, sample in asked]
    failed: list[str] = []
    with _SampleProgress(done, done + len(asked)) as progress:

        def finished(index: int, result: GroupResult) -> None:
            if result.error is not None:
                failed.append(result.error)
                return
            file.append(sample_row(*asked[index], requests[index], result, tokenizer))
            progress.advance()

        client.generate(requests, on_result=finished)
    if failed:
        raise EvaluationError(f"{len(failed)} of {len(asked)} samples have no answer ({failed[0]}); {KEPT}")


def sample_request(
    config: EvaluationConfig, question: Question, sample: int, stops: tuple[int, ...]
) -> GenerateRequest:
    """One sample of one question: an evaluation that goes on asks again for what it lacks alone."""
    benchmark = config.benchmarks[question.benchmark]
    seed = sample_seed(config.seed, question.benchmark, question.id, sample)
    return GenerateRequest(
        question.token_ids,
        1,
        seed,
        benchmark.max_tokens,
        temperature=benchmark.temperature,
        top_p=benchmark.top_p,
        stop_token_ids=stops,
    )


def sample_row(
    question: Question, sample: int, request: GenerateRequest, result: GroupResult, tokenizer: PreTrainedTokenizerBase
) -> Sample:
    """As it is stored, not graded yet."""
    (completion,) = result.completions
    return {
        "step": 0,
        "benchmark": question.benchmark,
        "question": question.id,
        "sample": sample,
        "prompt_hash": question.prompt_hash,
        "seed": request.seed,
        "text": tokenizer.decode(list(completion.token_ids), skip_special_tokens=True),
        "tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
    } | dict.fromkeys(("verdict", "reason", "extracted", "grader", "grader_version", "vote"))


def _client(config: EvaluationConfig, pool: ServerPool | None, stop_token_id: int) -> RolloutClient:
    server = config.server
    return RolloutClient(
        server.urls or pool.wait_ready(),
        stop_token_ids=[stop_token_id],
        request_timeout=server.request_timeout_seconds,
        max_retries=server.max_retries,
        recovery_timeout=server.recovery_timeout_seconds,
        timeout=server.timeout_seconds,
        open_requests=open_requests(server.max_num_seqs),
        check_servers=pool.raise_if_failed if pool is not None else None,
        section="server",
    )


@contextmanager
def _failures_keep_samples() -> Iterator[None]:
    """EvaluationError, which says what was kept, for servers that fail."""
    try:
        yield
    except (RolloutError, ServerError) as error:
        raise EvaluationError(f"{error}; {KEPT}") from error


class _SampleProgress:
    """Progress on stderr, every few seconds: samples end in bursts."""

    def __init__(self, done: int, total: int) -> None:
        self._bar = StepProgress(
            "samples", total, start=done, every=1, shown=(), unit="sample", console=Console(stderr=True)
        )
        self._done, self._total, self._shown_at = done, total, 0.0

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.__exit__(*raised)

    def advance(self) -> None:
        self._done += 1
        now = time.monotonic()
        if self._done == self._total or now - self._shown_at >= SECONDS_BETWEEN_LINES:
            self._bar.update(self._done, {})
            self._shown_at = now
