"""Servers that are given, restarted by somebody else, and verified. The server, the learner and vLLM's CUDA transports
are stand-ins; tests/integration runs the real ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

from pyrl.config import parse_config
from pyrl.learner.barrier import RankBarrier
from pyrl.rollout.server import ServerError
from pyrl.stages.engines import Engines, GenerationJob, request_seed
from pyrl.types import PackedBatch, Prompt
from pyrl.weights import device_transfer
from pyrl.weights.verify import WeightMismatch
from tests.rollout.fake_vllm import FakeVLLM, answer
from tests.weights.test_transfer_device import Engine as TrainerEngine

STOP = 1
PROMPTS = [(number, Prompt(str(number), (5, 6, number), "", "toy")) for number in range(4)]
ALONE = SimpleNamespace(
    world_size=1, rank=0, tp_size=1, dp_size=1, dp_rank=0, is_leader=True, cpu_group=None, device=torch.device("cpu"),
    barrier=RankBarrier(None, 0, 1),
)  # fmt: skip


class Learner:
    """Gives every token the log-prob -0.5, as the scripted server does."""

    policy = SimpleNamespace(shape=None)
    pad_multiple = 1

    def __init__(self) -> None:
        self.scored: list[PackedBatch] = []

    def hf_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "a.weight", torch.ones(2, 3)

    def score(self, batches: list[PackedBatch]) -> list[SimpleNamespace]:
        self.scored += batches
        return [SimpleNamespace(logprobs=torch.full(b.response_mask.shape, -0.5)) for b in batches]


@pytest.fixture
def fake() -> Iterator[FakeVLLM]:
    with FakeVLLM(version="default") as server:
        yield server


@pytest.fixture
def engines(fake: FakeVLLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Engines]]:
    opened = []

    def trainer_init(init_info, *, client, source):
        return TrainerEngine(init_info, client, source)

    monkeypatch.setattr(WeightTransferTrainerFactory, "trainer_init", trainer_init)
    monkeypatch.setattr(device_transfer.EngineControl, "world_size", lambda self: 1)
    monkeypatch.setattr("pyrl.stages.engines.hf_metadata", lambda shape: [("a.weight", (2, 3))])

    def start(transport: str = "shm", **changes: object) -> tuple[Engines, Learner]:
        tree = {
            "model": {"path": "m"}, "data": {"path": "d"},
            "rollout": {"urls": [fake.url], "transport": transport, "max_response_tokens": 4, "max_retries": 1},
        } | changes  # fmt: skip
        made = Engines.start(parse_config(tree), ALONE, None, STOP, None)
        opened.append(made)
        return made, Learner()

    yield start
    for made in opened:
        made.close()


def job(version: int) -> GenerationJob:
    return GenerationJob(PROMPTS, 2, step=version + 1, policy_version=version, purpose="train")


def calls(fake: FakeVLLM, path: str) -> int:
    return [called for called, _ in fake.calls].count(path)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("transport", ["shm", "ipc", "nccl"])
def test_a_server_that_somebody_restarted_gets_its_weights_and_the_step_completes(
    fake: FakeVLLM, engines: Callable[..., Engines], transport: str, deterministic: bool
) -> None:
    rollout, learner = engines(transport, deterministic=deterministic)
    rollout.sync(learner, version=4)

    def script(body, count):
        if count == 2:  # dies with requests in its queue and starts again with the weights of its model folder
            fake.version = "default"
        return (500, "dead") if count == 2 else (200, answer(body, version=fake.version))

    fake.script = script
    groups = rollout.generate(job(4))
    assert [g.prompt for g in groups] == [p for _, p in PROMPTS]
    versions = {span.policy_version for g in groups for c in g.completions for span in c.version_spans}
    assert versions == {4} and fake.version == "4"
    assert calls(fake, "/finish_weight_update") == 2
    assert calls(fake, "/init_weight_transfer_engine") == (1 if transport == "shm" else 2)
    rollout.sync(learner, version=5)
    assert fake.version == "5"


def test_a_server_that_is_given_up_ends_the_wait_for_a_rank_that_asks_it() -> None:
    """Only the rank that started the server knows; the one that asks it would try until it is late."""
    parallel = SimpleNamespace(world_size=2, barrier=RankBarrier(dist.HashStore(), 0, 2))
    given_up = ["", "", "vLLM server-1 ended"]

    def raise_if_failed() -> None:
        if error := given_up.pop(0):
            raise ServerError(error)

    config = parse_config({"model": {"path": "m"}, "data": {"path": "d"}})
    rollout = Engines(config, parallel, STOP, SimpleNamespace(raise_if_failed=raise_if_failed))
    with pytest.raises(ServerError, match="server-1 ended"):
        rollout.wait_for_leaders(3)


def test_a_restart_between_rollouts_is_found_by_the_next_sync(fake: FakeVLLM, engines: Callable[..., Engines]) -> None:
    rollout, learner = engines("nccl")
    rollout.sync(learner, version=1)
    fake.version = "default"
    rollout.sync(learner, version=2)
    assert fake.version == "2" and calls(fake, "/init_weight_transfer_engine") == 2


def test_seeds_differ_in_every_counter_and_fit_vllm() -> None:
    counters = [(run, step, prompt, purpose) for run in (0, 1) for step in range(20) for prompt in range(64)
                for purpose in ("train", "validation")]  # fmt: skip
    seeds = {request_seed(*c) for c in counters}
    assert len(seeds) == len(counters)
    assert all(0 <= s < 2**62 for s in seeds)
    assert min(b - a for a, b in itertools.pairwise(sorted(seeds))) > 1024  # samples take seed + index
    assert request_seed(1, 2, 3, "train") == 3777493486419271091  # a change breaks the resumption of runs


@pytest.mark.parametrize("purpose", ["train", "validation"])
def test_a_request_has_the_seed_of_its_prompt_step_and_purpose(
    fake: FakeVLLM, engines: Callable[..., Engines], purpose: str
) -> None:
    rollout, learner = engines(seed=5)
    rollout.sync(learner, version=6)
    rollout.generate(GenerationJob(PROMPTS, 2, step=7, policy_version=6, purpose=purpose))
    asked = {body["token_ids"][-1]: body["sampling_params"]["seed"] for body in fake.bodies}
    assert asked == {number: request_seed(5, 7, number, purpose) for number, _ in PROMPTS}


def test_what_fails_for_another_reason_is_dropped_without_a_sync(
    fake: FakeVLLM, engines: Callable[..., Engines]
) -> None:
    rollout, learner = engines()
    rollout.sync(learner, version=0)
    fake.script = lambda body, _: (503, "no room") if body["token_ids"][-1] == 2 else (200, answer(body))
    groups = rollout.generate(job(0))
    assert [g.prompt.id for g in groups] == ["0", "1", "3"] and calls(fake, "/finish_weight_update") == 1


def scores(body: dict, logprob: float) -> dict:
    held = [None, *({str(token): {"logprob": logprob}} for token in body["token_ids"][1:])]
    return {"choices": [{"finish_reason": "length"}], "prompt_logprobs": held}


def test_prompts_of_one_token_are_probed_too(fake: FakeVLLM, engines: Callable[..., Engines]) -> None:
    rollout, learner = engines()
    rollout.sync(learner, version=0)
    probes = [Prompt("a", (7,), "", "toy"), Prompt("b", (8, 9), "", "toy"), Prompt("c", (3,), "", "toy")]
    fake.script = lambda body, _: (200, scores(body, -0.5))
    rollout.verify(learner, probes, version=0)
    assert sorted(body["token_ids"] for body in fake.bodies) == [[3, STOP], [7, STOP], [8, 9]]
    assert learner.scored[0].response_mask.sum() == 3
    fake.script = lambda body, _: (200, scores(body, -0.7 if body["token_ids"][0] == 3 else -0.5))
    with pytest.raises(WeightMismatch, match=r"probe 2, token 1: learner -0\.5.*engine -0\.7"):
        rollout.verify(learner, probes, version=0)
