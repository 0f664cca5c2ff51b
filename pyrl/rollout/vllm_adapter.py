"""Everything that depends on vLLM's version: command line, environment, routes, and the shape of what they carry.

Written against vLLM 0.32.0: `entrypoints/scale_out/token_in_token_out` (generate) and `entrypoints/rl/online` (pause,
resume, weight update, weight version, checksums).
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, Literal

from pyrl.types import Completion, VersionSpan

Transport = Literal["shm", "ipc", "nccl"]

WEIGHT_BACKENDS: dict[str, str] = {"shm": "pyrl_shm", "ipc": "ipc", "nccl": "nccl"}
"""Transport -> name in vLLM's registry of weight-transfer engines; `pyrl_shm` is `pyrl.weights.shm_engine.BACKEND`."""

MODEL_FOLDER_VERSION = -1
"""Policy version of a server that was never synced: the weights are those of its model folder."""

CLAMPED = -9999.0
"""What vLLM's server writes for a log-prob that is NaN or minus infinity, for which JSON has no number."""
GENERATE, HEALTH, LOAD, MODELS = "/inference/v1/generate", "/health", "/load", "/v1/models"
PAUSE, RESUME, IS_PAUSED = "/pause", "/resume", "/is_paused"
INIT_TRANSFER, SHUTDOWN_TRANSFER = "/init_weight_transfer_engine", "/shutdown_weight_transfer_engine"
START_UPDATE, UPDATE, FINISH_UPDATE = "/start_weight_update", "/update_weights", "/finish_weight_update"
UPDATE_UNFINISHED = "weight update is already active"
"""In the answer of START_UPDATE where an earlier update was not finished."""
WEIGHT_INFO, WEIGHT_CHECKER, WORLD_SIZE = "/weight_info", "/weight_checker", "/get_world_size"

MIN_BATCHED_TOKENS = 8192
"""Smallest prefill budget of one engine step on CPU, tokens."""


CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""For which vLLM's CPU attention has kernels; with another its engine dies at the first request, not at the start."""
HEAD_DIM_IGNORED = ("Qwen2ForCausalLM",)
"""Architectures whose vLLM model takes no head dimension from config.json."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What one vLLM server is started with."""

    model: Path
    """Hugging Face folder."""
    dtype: Literal["fp32", "bf16"]
    max_model_len: int
    """Prompt and response together, tokens."""
    transport: Transport | None
    """None: the weights of its folder to the end."""
    device: Literal["cpu", "cuda"]
    tp: int = 1
    max_num_seqs: int = 256
    kv_cache_gib: float = 1.0
    """CPU only."""
    gpu_memory_utilization: float = 0.5
    """CUDA only."""
    threads: int | None = None
    """OMP threads of a CPU server; None: all cores this process may use."""
    deterministic: bool = False
    """Schedule by request priority, so that the order of arrival does not matter."""
    extra_args: tuple[str, ...] = ()


def server_command(settings: ServerSettings, port: int) -> list[str]:
    """The argument vector of an OpenAI server on 127.0.0.1:`port`; `extra_args` come last and win."""
    command = [
        sys.executable, "-m", "pyrl.rollout.vllm_main",
        "--model", str(settings.model),
        "--host", "127.0.0.1",
        "--port", str(port),
        "--dtype", {"fp32": "float32", "bf16": "bfloat16"}[settings.dtype],
        "--max-model-len", str(settings.max_model_len),
        "--max-num-seqs", str(settings.max_num_seqs),
        "--tensor-parallel-size", str(settings.tp),
        "--generation-config", "vllm",  # the model folder's own sampling defaults must not leak into training
        "--skip-tokenizer-init",
        "--no-enable-prefix-caching",
        "--enable-scale-out",
        "--enable-server-load-tracking",
        "--disable-log-stats",
        "--disable-uvicorn-access-log",
        "--disable-fastapi-docs",
    ]  # fmt: skip
    if settings.transport is not None:
        command += ["--weight-transfer-config", json.dumps({"backend": WEIGHT_BACKENDS[settings.transport]})]
    if settings.deterministic:
        command += ["--scheduling-policy", "priority", "--no-async-scheduling"]
    command += _cpu_arguments(settings) if settings.device == "cpu" else _cuda_arguments(settings)
    return [*command, *settings.extra_args]


def _cpu_arguments(settings: ServerSettings) -> list[str]:
    arguments = [
        # A seeded request whose prefill is cut into chunks kills the engine on CPU: it rewinds the request's generator
        # by an offset, which CPU generators do not have.
        "--no-enable-chunked-prefill",
        "--max-num-batched-tokens", str(max(MIN_BATCHED_TOKENS, settings.max_model_len)),
        "--kv-cache-memory-bytes", str(int(settings.kv_cache_gib * 2**30)),
        "--enforce-eager",  # compilation costs a minute at start
    ]  # fmt: skip
    return arguments + (["--distributed-executor-backend", "uni"] if settings.tp == 1 else [])


def _cuda_arguments(settings: ServerSettings) -> list[str]:
    return ["--gpu-memory-utilization", str(settings.gpu_memory_utilization)]


def server_environment(settings: ServerSettings) -> dict[str, str]:
    """This process's environment plus what the server needs; what torchrun set for the learner is taken out."""
    learner = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in learner and not name.startswith("TORCHELASTIC_")
    }
    environment |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if settings.transport == "ipc":
        # CUDA handles travel pickled over the loopback interface.
        environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    if settings.device == "cpu":
        environment |= {"OMP_NUM_THREADS": str(server_threads(settings.threads)), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        # Spinning OMP threads would take the cores from the API server and the learner: 4 times the CPU time a step.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if settings.tp == 1:
            # The engine then runs the model in its own process: one process less to import, one hop less a step.
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return environment


def server_threads(setting: int | None) -> int:
    """OMP threads of a CPU server: `rollout.threads`, or all cores this process may use."""
    return setting or len(os.sched_getaffinity(0))


def parse_served_model(payload: dict[str, Any]) -> tuple[str, int]:
    """(model folder or name, max_model_len)"""
    card, *_ = (card for card in payload["data"] if card.get("parent") is None)  # adapters have one
    return str(card["root"]), int(card["max_model_len"])


def generate_body(
    token_ids: tuple[int, ...],
    *,
    samples: int,
    seed: int,
    max_tokens: int,
    temperature: float,
    top_p: float,
    stop_token_ids: tuple[int, ...],
    priority: int = 0,
) -> dict[str, Any]:
    """Request of `samples` completions; vLLM seeds completion i with `seed` + i."""
    body: dict[str, Any] = {
        "token_ids": list(token_ids),
        "sampling_params": {
            "n": samples,
            "seed": seed,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "stop_token_ids": list(stop_token_ids),
            "logprobs": 0,  # the sampled token's alone
            "detokenize": False,
        },
    }
    if priority:
        body["priority"] = priority
    return body


def parse_generate(payload: dict[str, Any]) -> tuple[Completion, ...]:
    """Completions of one answer, by sample index. Raises ValueError where a field is not what the route promises."""
    choices = sorted(payload["choices"], key=lambda choice: choice["index"])
    return tuple(_completion(choice) for choice in choices)


def _completion(choice: dict[str, Any]) -> Completion:
    tokens, content = choice["token_ids"], choice["logprobs"]["content"]
    if not tokens or [entry["token_id"] for entry in content] != tokens:
        raise ValueError(f"sample {choice['index']}: log-probs do not follow its {len(tokens)} token ids")
    if choice["finish_reason"] not in ("stop", "length"):
        raise ValueError(f"sample {choice['index']} ended by {choice['finish_reason']!r}")
    spans = tuple(
        VersionSpan(parse_version(span["version"]), span["start"], span["end"]) for span in choice["weight_versions"]
    )
    bounds = [0, *(bound for span in spans for bound in (span.start, span.end)), len(tokens)]
    if bounds[::2] != bounds[1::2]:
        raise ValueError(f"sample {choice['index']}: weight versions {spans} do not cover its {len(tokens)} tokens")
    return Completion(
        token_ids=tuple(tokens),
        rollout_logprobs=tuple(nan if entry["logprob"] <= CLAMPED else entry["logprob"] for entry in content),
        finish_reason=choice["finish_reason"],
        version_spans=spans,
    )


def early_end(payload: dict[str, Any]) -> str | None:
    """Why a sample ended before its stop token or length limit, if one did."""
    reasons = (choice["finish_reason"] for choice in payload["choices"])
    return next((str(reason) for reason in reasons if reason not in ("stop", "length")), None)


def was_never_synced(payload: dict[str, Any]) -> bool:
    """Whether the answer was generated, in part at least, with the weights of the server's model folder."""
    spans = (span for choice in payload["choices"] for span in choice.get("weight_versions") or ())
    return any(parse_version(span["version"]) == MODEL_FOLDER_VERSION for span in spans)


def parse_version(text: str) -> int:
    """vLLM's version label as a policy version; "default" means that no update was ever applied."""
    return MODEL_FOLDER_VERSION if text == "default" else int(text)


def score_body(token_ids: tuple[int, ...]) -> dict[str, Any]:
    """Request of the log-probs of a given sequence; the one token it also generates is thrown away."""
    sampling = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
    return {"token_ids": list(token_ids), "sampling_params": sampling}


def parse_scores(payload: dict[str, Any], token_ids: tuple[int, ...]) -> list[float]:
    """log p(token_ids[t] | token_ids[:t]) for t = 1 ... len - 1."""
    entries = payload["prompt_logprobs"]
    return [entry[str(token)]["logprob"] for entry, token in zip(entries[1:], token_ids[1:], strict=True)]
