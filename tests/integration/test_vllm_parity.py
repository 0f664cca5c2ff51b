"""Log-probs of a packed batch in the learner against vLLM's, which got its weights from that learner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrl.config import ParallelConfig
from pyrl.data.packing import pack
from pyrl.learner.learner import Learner
from pyrl.learner.parallel import Parallel, destroy_parallel, init_parallel
from pyrl.rollout.client import RolloutClient
from pyrl.rollout.server import ServerPool
from pyrl.types import PackedBatch, Sequence
from pyrl.weights.transfer import ShmWeightTransfer
from tests.integration.conftest import STOP_TOKEN, Served, make_tiny_model, tiny_settings
from tests.learner.tiny import random_sequences, run_config, save_tiny_model

TOLERANCE = 1e-3
"""Largest difference of a log-prob, fp32."""
DIMENSIONS = {"hidden_size": 192, "head_dim": 32, "num_hidden_layers": 3}
"""Instead of those of `tests.learner.tiny`: vLLM's CPU attention has kernels for few head dimensions, and its Qwen2
ignores `head_dim`."""
VOCAB = 200
"""Of the smaller vocabulary."""
MODELS = [("qwen2", True), ("qwen2", False), ("llama", True), ("llama", False)]


@dataclass(frozen=True)
class Engine:
    """A server on a random model."""

    pool: ServerPool
    other: Path
    """Other random weights for the same model: the learner's."""


@pytest.fixture(scope="module")
def engines(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, bool], Engine]]:
    """The session's server, and one for each further kind of model; they start together."""
    folder = tmp_path_factory.mktemp("parity")
    with ExitStack() as stack:
        started = {}
        for family, tied in MODELS[1:]:
            place = folder / f"{family}-{tied}"
            for seed, name in enumerate(("first", "other")):
                save_tiny_model(family, place / name, tied=tied, seed=seed, **DIMENSIONS)
            pool = stack.enter_context(ServerPool.from_settings(tiny_settings(place / "first"), place))
            started[family, tied] = Engine(pool, place / "other")
        make_tiny_model(folder / "other", seed=9)
        yield {MODELS[0]: Engine(served.pool, folder / "other")} | started


@pytest.fixture(scope="module")
def parallel() -> Iterator[Parallel]:
    yield init_parallel(ParallelConfig())
    destroy_parallel()


def whole_sequences() -> list[Sequence]:
    """All tokens but the first are a response: vLLM scores every one of them."""
    ids = [s.prompt_ids + s.response_ids for s in random_sequences(10, vocab=VOCAB)]
    return [Sequence(i, tokens[:1], tokens[1:], 1.0) for i, tokens in enumerate(ids)]


def largest_gap(client: RolloutClient, learner: Learner) -> float:
    sequences = whole_sequences()
    batch = pack(sequences, pad_multiple=16)
    ours = learner.score([batch])[0].logprobs[batch.response_mask]
    scored = client.score([s.prompt_ids + s.response_ids for s in sequences])
    theirs = torch.tensor([logprob for scores in scored for logprob in scores])
    assert len(ours) == len(theirs) > 100 and ours.std() > 0.1, "a policy this flat would hide errors"
    return (ours - theirs).abs().max().item()


def likelier(batch: PackedBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> Any:
    return -(batch.response_mask * logprobs).sum() / batch.response_mask.sum(), {}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tied"), MODELS, ids=[f"{f} {'tied' if t else 'untied'}" for f, t in MODELS])
def test_vllm_and_the_learner_are_one_policy(
    engines: dict[tuple[str, bool], Engine], parallel: Parallel, family: str, tied: bool
) -> None:
    engine = engines[family, tied]
    learner = Learner(run_config(engine.other, optimizer={"lr": 1e-2}), parallel)
    urls = engine.pool.wait_ready()
    with (
        RolloutClient(urls, stop_token_ids=[STOP_TOKEN]) as client,
        ShmWeightTransfer(urls, pool=engine.pool) as transfer,
    ):
        assert largest_gap(client, learner) > 0.1, "vLLM already had the weights that it is to be given"
        transfer.sync(learner.hf_weights(), version=1)
        assert largest_gap(client, learner) <= TOLERANCE
        learner.update([pack(whole_sequences())], likelier)
        assert largest_gap(client, learner) > 0.1, "the update changed nothing"
        transfer.sync(learner.hf_weights(), version=2)
        assert largest_gap(client, learner) <= TOLERANCE
