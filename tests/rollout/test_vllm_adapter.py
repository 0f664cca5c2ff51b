from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from pyrl.rollout import vllm_adapter
from pyrl.rollout.vllm_adapter import ServerSettings, server_command, server_environment


def settings(**changes: object) -> ServerSettings:
    base = {"model": Path("m"), "dtype": "fp32", "max_model_len": 100, "transport": "shm", "device": "cpu"}
    return ServerSettings(**(base | changes))


def value_of(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def test_the_engine_is_registered_under_the_name_servers_are_started_with() -> None:
    """In a fresh process: `register` runs in each of vLLM's, and must not drag pyrl's heavy parts along."""
    probe = (
        "import sys, pyrl.weights.shm_engine as engine; engine.register(); engine.register()\n"
        "from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory as factory\n"
        "heavy = [m for m in sys.modules if m.startswith(('pyrl.', 'megatron')) and m not in\n"
        "         ('pyrl.weights', 'pyrl.weights.shm_engine')]\n"
        "print(engine.BACKEND, engine.BACKEND in factory._registry, heavy)"
    )
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120, check=True)
    assert out.stdout.split("\n")[-2] == f"{vllm_adapter.WEIGHT_BACKENDS['shm']} True []"


def test_head_dimensions_are_those_of_vllms_cpu_attention() -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert list(vllm_adapter.CPU_HEAD_DIMS) == CPUAttentionBackend.get_supported_head_sizes()


def test_cpu_server_never_chunks_a_prefill() -> None:
    """A seeded request whose prefill is chunked kills vLLM's CPU engine."""
    for length in (100, 20_000):
        command = server_command(settings(max_model_len=length), 1234)
        assert "--no-enable-chunked-prefill" in command
        assert int(value_of(command, "--max-num-batched-tokens")) >= length


def test_server_listens_on_loopback_with_the_transport_of_the_run() -> None:
    command = server_command(settings(transport="nccl", device="cuda", extra_args=("--seed", "3")), 1234)
    assert value_of(command, "--host") == "127.0.0.1" and value_of(command, "--port") == "1234"
    assert json.loads(value_of(command, "--weight-transfer-config")) == {"backend": "nccl"}
    assert command[-2:] == ["--seed", "3"]
    assert "--weight-transfer-config" not in server_command(settings(transport=None), 1234)


def test_environment_of_torchrun_does_not_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    environment = server_environment(settings(threads=5))
    assert "RANK" not in environment and "TORCHELASTIC_RUN_ID" not in environment
    assert environment["OMP_NUM_THREADS"] == "5" and environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert "VLLM_ALLOW_INSECURE_SERIALIZATION" not in environment
    assert server_environment(settings(transport="ipc", device="cuda"))["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1"


def test_a_log_prob_that_json_cannot_hold_is_not_finite() -> None:
    choice = {
        "index": 0, "token_ids": [4, 5], "finish_reason": "stop",
        "logprobs": {"content": [{"token_id": 4, "logprob": -9999.0}, {"token_id": 5, "logprob": -1.0}]},
        "weight_versions": [{"version": "7", "start": 0, "end": 2}],
    }  # fmt: skip
    (completion,) = vllm_adapter.parse_generate({"choices": [choice]})
    assert math.isnan(completion.rollout_logprobs[0]) and completion.rollout_logprobs[1] == -1.0


def test_spans_of_two_versions_are_kept_apart() -> None:
    choice = {
        "index": 0, "token_ids": [4, 5, 6], "finish_reason": "length",
        "logprobs": {"content": [{"token_id": t, "logprob": -1.0} for t in (4, 5, 6)]},
        "weight_versions": [{"version": "default", "start": 0, "end": 1}, {"version": "7", "start": 1, "end": 3}],
    }  # fmt: skip
    (completion,) = vllm_adapter.parse_generate({"choices": [choice]})
    spans = [(s.policy_version, s.start, s.end) for s in completion.version_spans]
    assert spans == [(vllm_adapter.MODEL_FOLDER_VERSION, 0, 1), (7, 1, 3)]
