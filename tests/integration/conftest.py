"""What tests share, one each per session: a vLLM server on a tiny random model whose dimensions all differ; a small run
with its server, and that run unbroken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from pyrl.rollout.client import RolloutClient
from pyrl.rollout.server import ServerPool
from pyrl.rollout.vllm_adapter import ServerSettings
from tests.run_job import Job, served_job

STOP_TOKEN = 1
MAX_MODEL_LEN = 64


def make_tiny_model(folder: Path, seed: int = 0) -> Qwen2ForCausalLM:
    """Write a random tied Qwen2 as a Hugging Face folder without tokenizer; returns the model, fp32."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=200,  # not a multiple of 64, to which vLLM pads
        hidden_size=128,  # vLLM's CPU attention has kernels for few head sizes, and its Qwen2 ignores `head_dim`
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=STOP_TOKEN,
        initializer_range=0.2,  # wide enough that other weights give other log-probs
    )
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:  # initialised to constants, which would hide that they did not arrive
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def tiny_settings(folder: Path, **changes: object) -> ServerSettings:
    """Settings of a server on `make_tiny_model`."""
    settings = dict(
        model=folder,
        dtype="fp32",
        max_model_len=MAX_MODEL_LEN,
        transport="shm",
        device="cpu",
        max_num_seqs=64,
        kv_cache_gib=0.1,
        threads=1,
        deterministic=True,  # priority scheduling serves ordinary requests too
    )
    return ServerSettings(**(settings | changes))


@dataclass(frozen=True)
class Served:
    """A running server and the model it was started on."""

    pool: ServerPool
    url: str
    model: Qwen2ForCausalLM
    folder: Path

    def client(self, **options: object) -> RolloutClient:
        defaults = {"stop_token_ids": [STOP_TOKEN], "request_timeout": 60.0, "check_servers": self.pool.raise_if_failed}
        return RolloutClient([self.url], **(defaults | options))


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The session's server. A test that changes its weights or kills it restores nothing: sync what you need."""
    folder = tmp_path_factory.mktemp("served")
    model = make_tiny_model(folder / "model")
    with ServerPool.from_settings(tiny_settings(folder / "model"), folder) as pool:
        (url,) = pool.wait_ready()
        yield Served(pool, url, model, folder)


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Its server is restarted when a test kills it."""
    with served_job(tmp_path_factory.mktemp("job")) as job:
        yield job


@pytest.fixture(scope="session")
def unbroken(job: Job) -> Path:
    """The folder of the run that nothing disturbed. Do not change it."""
    job.finish(job.folder / "unbroken", imported=False)  # with other hash seeds than those it is compared with
    return job.folder / "unbroken"
