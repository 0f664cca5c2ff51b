"""Samples from the same vLLM servers and client as in training, all in flight, each stored when it is finished."""

from __future__ import annotations

import hashlib
import resource
from contextlib import ExitStack
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import PreTrainedTokenizerBase

from pyrl.config import ConfigError
from pyrl.evaluation.benchmarks import Question
from pyrl.evaluation.config import EvaluationConfig
from pyrl.evaluation.store import EvaluationError, Key, Sample, SampleFile, read_samples
from pyrl.ops.counter import derive_seed, mix
from pyrl.rollout.client import GenerateRequest, GroupResult, RolloutClient
from pyrl.rollout.errors import RolloutError
from pyrl.rollout.server import ServerPool
from pyrl.rollout.vllm_adapter import ServerSettings

SPARE_FILES = 256
"""File handles beside one a request."""


def sample_seed(seed: int, benchmark: str, question: str, sample: int) -> int:
    """In [0, 2^62), of the names alone: neither other questions nor the order change what is drawn."""
    name = int.from_bytes(hashlib.sha256(f"{benchmark}\0{question}".encode()).digest()[:8], "little")
    return mix(mix(derive_seed(seed, step=0, mini_batch=0, purpose="evaluation"), name), sample) >> 2


def generate_missing(
    config: EvaluationConfig, folder: Path, questions: list[Question], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Draw and store every sample that the folder lacks.

    Raises EvaluationError, with all finished samples stored, when servers fail, answer something else, or the disk is
    full.
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
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {config.model} names no EOS token, at which responses end")
    _allow_open_files(len(asked) + SPARE_FILES)
    with ExitStack() as stack:
        pool = None if config.server.urls else stack.enter_context(_start_servers(config, folder, questions))
        client = stack.enter_context(_client(config, pool, tokenizer.eos_token_id))
        file = SampleFile(folder)
        stack.callback(file.close)
        _generate(config, client, asked, file, tokenizer, done)


def _generate(
    config: EvaluationConfig,
    client: RolloutClient,
    asked: list[tuple[Question, int]],
    file: SampleFile,
    tokenizer: PreTrainedTokenizerBase,
    done: dict[Key, Sample],
) -> None:
    requests = [_request(config, question, sample) for question, sample in asked]
    failed: list[str] = []
    with _progress() as progress:
        bar = progress.add_task("samples", total=len(done) + len(asked), completed=len(done))

        def finished(index: int, result: GroupResult) -> None:
            if result.error is not None:
                failed.append(result.error)
                return
            file.append(_row(*asked[index], requests[index], result, tokenizer))
            progress.advance(bar)

        try:
            client.generate(requests, on_result=finished)
        except RolloutError as error:
            raise EvaluationError(f"{error}; all finished samples are kept: the same command goes on") from error
    if failed:
        raise EvaluationError(
            f"{len(failed)} of {len(asked)} samples have no answer ({failed[0]}); the others are kept: call the same "
            "command again to go on"
        )


def _request(config: EvaluationConfig, question: Question, sample: int) -> GenerateRequest:
    benchmark = config.benchmarks[question.benchmark]
    seed = sample_seed(config.seed, question.benchmark, question.id, sample)
    return GenerateRequest(
        question.token_ids, 1, seed, benchmark.max_tokens, temperature=benchmark.temperature, top_p=benchmark.top_p
    )


def _row(
    question: Question, sample: int, request: GenerateRequest, result: GroupResult, tokenizer: PreTrainedTokenizerBase
) -> Sample:
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
    } | dict.fromkeys(("verdict", "reason", "extracted", "grader", "grader_version"))


def _start_servers(config: EvaluationConfig, folder: Path, questions: list[Question]) -> ServerPool:
    server = config.server
    needed = max(len(q.token_ids) + config.benchmarks[q.benchmark].max_tokens for q in questions)
    if server.max_model_len is not None and server.max_model_len < needed:
        raise ConfigError(f"server.max_model_len {server.max_model_len}: the longest prompt with its max_tokens needs {needed}")
    settings = ServerSettings(
        model=config.model,
        dtype=server.dtype,
        max_model_len=server.max_model_len or needed,
        transport="shm",
        device="cuda" if torch.cuda.is_available() else "cpu",
        tp=server.tp,
        max_num_seqs=server.max_num_seqs,
        kv_cache_gib=server.kv_cache_gib,
        gpu_memory_utilization=server.gpu_memory_utilization,
        threads=server.threads,
        extra_args=server.extra_server_args,
    )
    return ServerPool.from_settings(
        settings, folder, count=server.count, startup_timeout=server.startup_timeout_seconds
    )


def _client(config: EvaluationConfig, pool: ServerPool | None, stop_token_id: int) -> RolloutClient:
    server = config.server
    return RolloutClient(
        server.urls or pool.wait_ready(),
        stop_token_ids=[stop_token_id],
        request_timeout=server.request_timeout_seconds,
        max_retries=server.max_retries,
        recovery_timeout=server.recovery_timeout_seconds,
        timeout=server.timeout_seconds,
        check_servers=pool.raise_if_failed if pool is not None else None,
    )


def _allow_open_files(wanted: int) -> None:
    """Every request in flight is a connection. ConfigError where the system allows fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise ConfigError(f"{wanted} open files are needed, the hard limit is {hard} (ulimit -Hn): raise it")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    return Progress(*columns, console=Console(stderr=True))
