"""Rollout and weight sync on a real vLLM server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2ForCausalLM

from pyrl.rollout.client import GenerateRequest, RolloutClient
from pyrl.rollout.control import EngineCallError, EngineControl
from pyrl.rollout.errors import PolicyVersionMismatch, RolloutError
from pyrl.rollout.server import ServerError, ServerPool
from pyrl.rollout.vllm_adapter import MODEL_FOLDER_VERSION
from pyrl.weights.transfer import ShmWeightTransfer, WeightSyncError
from pyrl.weights.verify import (
    LOGPROB_TOLERANCE,
    WeightMismatch,
    check_checksums,
    check_logprobs,
    expected_checksums,
    probe_logprobs,
)
from tests.integration.conftest import MAX_MODEL_LEN, STOP_TOKEN, Served, make_tiny_model, tiny_settings
from tests.rollout.processes import alive, wait_for

PROBES = [[5, 9, 33, 2, 71, 8], [90, 3, 3, 17], list(range(2, 40))]


def hf_logprobs(model: Qwen2ForCausalLM, tokens: list[int]) -> list[float]:
    """log p(token t | before) for t = 1 ... len - 1, by transformers."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].double()
    return logits[:-1].log_softmax(-1)[range(len(tokens) - 1), tokens[1:]].tolist()


def hf_weights(model: Qwen2ForCausalLM) -> list[tuple[str, torch.Tensor]]:
    return [(name, parameter.detach()) for name, parameter in model.named_parameters()]


def requests(count: int = 6, samples: int = 4, max_tokens: int = 8, step: int = 0) -> list[GenerateRequest]:
    return [
        GenerateRequest(tuple(range(2 + i, 8 + 2 * i)), samples, 10_000 * step + 100 * i, max_tokens)
        for i in range(count)
    ]


@pytest.fixture
def transfer(served: Served) -> Iterator[ShmWeightTransfer]:
    with ShmWeightTransfer([served.url], pool=served.pool) as transfer:
        yield transfer


@pytest.fixture
def client(served: Served) -> Iterator[RolloutClient]:
    with served.client() as client:
        yield client


def test_completions_carry_tokens_logprobs_and_version(
    served: Served, client: RolloutClient, transfer: ShmWeightTransfer
) -> None:
    transfer.sync(hf_weights(served.model), version=3)
    asked = requests()
    results = client.generate(asked, policy_version=3)
    for request, result in zip(asked, results, strict=True):
        assert result.error is None and len(result.completions) == request.samples
        for completion in result.completions:
            length = len(completion.token_ids)
            assert [(s.policy_version, s.start, s.end) for s in completion.version_spans] == [(3, 0, length)]
            want = hf_logprobs(served.model, [*request.token_ids, *completion.token_ids])[-length:]
            assert completion.rollout_logprobs == pytest.approx(want, abs=1e-3)


def test_the_engine_is_forked_from_its_server(served: Served) -> None:
    """A new interpreter would import everything again; multiprocessing then starts a resource tracker beside it."""
    (server,) = psutil.Process(served.pool._servers[0].pid).children()
    (engine,) = server.children(recursive=True)
    assert "EngineCore" in engine.cmdline()[0] and engine.create_time() - server.create_time() > 1


def test_stop_token_belongs_to_the_response(served: Served, client: RolloutClient) -> None:
    completions = [c for r in client.generate(requests(samples=32, max_tokens=48)[:2]) for c in r.completions]
    stopped = [c for c in completions if c.finish_reason == "stop"]
    assert stopped and len(stopped) < len(completions)
    assert all(c.token_ids[-1] == STOP_TOKEN and STOP_TOKEN not in c.token_ids[:-1] for c in stopped)
    cut = [c for c in completions if c.finish_reason == "length"]
    assert all(len(c.token_ids) == 48 and STOP_TOKEN not in c.token_ids for c in cut)


def test_seeds_fix_every_sample(client: RolloutClient) -> None:
    def tokens(asked: list[GenerateRequest]) -> list[list[tuple[int, ...]]]:
        return [[c.token_ids for c in result.completions] for result in client.generate(asked)]

    asked = requests()
    first = tokens(asked)
    assert tokens(asked) == first
    # Neither company nor order changes a prompt's samples, and a sample is seed + index.
    assert tokens(asked[::-1][:3])[0] == first[-1]
    third = GenerateRequest(asked[0].token_ids, 1, asked[0].seed + 2, asked[0].max_tokens)
    assert tokens([third])[0][0] == first[0][2]
    assert tokens(requests(step=1)) != first


def test_deterministic_batches_give_equal_bits(served: Served) -> None:
    asked = requests(count=40, samples=4)  # 160 sequences over 64 slots: what runs beside what depends on the order
    with served.client(deterministic=True) as client:
        first = client.generate(asked)
        assert all(client.generate(asked) == first for _ in range(3))


def test_probe_logprobs_follow_a_sync_and_only_a_sync(
    served: Served, client: RolloutClient, transfer: ShmWeightTransfer, tmp_path: Path
) -> None:
    old, new = served.model, make_tiny_model(tmp_path / "other", seed=1)
    want_old, want_new = ([hf_logprobs(model, probe) for probe in PROBES] for model in (old, new))
    transfer.sync(hf_weights(old), version=0)
    before = probe_logprobs(client, PROBES)
    assert check_logprobs(before, want_old, tolerance=LOGPROB_TOLERANCE["fp32"], version=0) < 1e-3
    with pytest.raises(WeightMismatch, match="version 1"):
        check_logprobs(before, want_new, tolerance=LOGPROB_TOLERANCE["fp32"], version=1)
    transfer.sync(iter(hf_weights(new)), version=1)
    check_logprobs(probe_logprobs(client, PROBES), want_new, tolerance=LOGPROB_TOLERANCE["fp32"], version=1)


def not_packed(checksums: dict[str, str]) -> dict[str, str]:
    """Those of the parameters that vLLM's CPU backend keeps as they were sent."""
    return {name: digest for name, digest in checksums.items() if "embed_tokens" in name or "norm" in name}


def test_checksums_of_what_the_cpu_backend_keeps(served: Served, transfer: ShmWeightTransfer, tmp_path: Path) -> None:
    weights = hf_weights(make_tiny_model(tmp_path / "other", seed=2))
    transfer.sync(weights, version=5)
    expected = expected_checksums(weights, torch.float32)
    with EngineControl(served.url) as control:
        assert set(control.checksums()) == {f"dp0:pp0:pcp0:tp0:{name}" for name in expected}
        assert check_checksums(control, not_packed(expected)) == 6  # embedding, two norms a layer, final norm
        with pytest.raises(WeightMismatch, match="embed_tokens"):
            check_checksums(control, not_packed(expected_checksums(hf_weights(served.model), torch.float32)))


def test_wrong_version_stops(served: Served, client: RolloutClient, transfer: ShmWeightTransfer) -> None:
    transfer.sync(hf_weights(served.model), version=8)
    with pytest.raises(PolicyVersionMismatch, match=r"\[8\].*version 9"):
        client.generate(requests(count=2), policy_version=9)


def test_incomplete_update_is_refused(served: Served, client: RolloutClient, transfer: ShmWeightTransfer) -> None:
    weights = hf_weights(served.model)
    with pytest.raises(WeightSyncError, match=r"version 10 .* incomplete: 1 of \d+ parameters .* 'model.norm.weight'"):
        transfer.sync(weights[:-1], version=10)
    with EngineControl(served.url) as control:
        assert control.weight_version() != 10
        transfer.sync(weights, version=11)
        assert control.weight_version() == 11
    want = [hf_logprobs(served.model, probe) for probe in PROBES]
    check_logprobs(probe_logprobs(client, PROBES), want, tolerance=1e-3, version=11)
    assert len(list(transfer.folder.glob("*.safetensors"))) == 1  # the files of failed and older versions are gone


@pytest.mark.parametrize("with_a_part", [False, True], ids=["begun", "half loaded"])
def test_an_update_that_a_killed_trainer_left_unfinished_is_replaced(
    served: Served, client: RolloutClient, tmp_path: Path, with_a_part: bool
) -> None:
    """A server that was given by URL outlives the trainer that was killed in the middle of a sync."""
    new = make_tiny_model(tmp_path / "other", seed=4)
    part = dict(hf_weights(make_tiny_model(tmp_path / "killed", seed=5))[:9])
    save_file({name: tensor.clone() for name, tensor in part.items()}, tmp_path / "part.safetensors")
    with EngineControl(served.url) as control:
        control.pause()
        control.start_update()
        if with_a_part:
            control.update({"path": str(tmp_path / "part.safetensors"), "names": list(part), "last": False})
    with ShmWeightTransfer([served.url]) as transfer:
        transfer.sync(hf_weights(new), version=12)
    want = [hf_logprobs(new, probe) for probe in PROBES]
    check_logprobs(probe_logprobs(client, PROBES), want, tolerance=LOGPROB_TOLERANCE["fp32"], version=12)
    assert all(result.error is None for result in client.generate(requests(count=2), policy_version=12))


def test_too_long_prompt_is_refused_by_name(client: RolloutClient) -> None:
    with pytest.raises(RolloutError, match=f"{MAX_MODEL_LEN}"):
        client.generate([GenerateRequest(tuple(range(2, 4 + MAX_MODEL_LEN)), 1, 0, 4)])


def test_killed_server_is_restarted_synced_and_the_step_completes(
    served: Served, transfer: ShmWeightTransfer, tmp_path: Path
) -> None:
    new = make_tiny_model(tmp_path / "other", seed=3)
    transfer.sync(hf_weights(new), version=21)
    asked = requests(count=40, samples=16, max_tokens=40)
    with served.client(recovery_timeout=240.0) as client:
        expected = [r.completions[0].token_ids for r in client.generate(asked[:4], policy_version=21)]
        restarts = len(served.pool._servers[0].restarts)
        guard = psutil.Process(served.pool._servers[0].pid)
        before = guard.children(recursive=True)
        engine = next(p for p in before if "EngineCore" in "".join(p.cmdline()))
        killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {engine.pid}"])
        results = client.generate(asked, policy_version=21)
        killer.wait()
        assert len(served.pool._servers[0].restarts) == restarts + 1
        assert [r.error for r in results] == [None] * len(asked)
        assert [r.completions[0].token_ids for r in results[:4]] == expected
        want = [hf_logprobs(new, probe) for probe in PROBES]
        check_logprobs(probe_logprobs(client, PROBES), want, tolerance=1e-3, version=21)
    assert alive(before) == []


ORPHAN_MAKER = """
import sys, time
from pathlib import Path
from pyrl.rollout.server import ServerPool
from tests.integration.conftest import tiny_settings
pool = ServerPool.from_settings(tiny_settings(Path(sys.argv[1])), Path(sys.argv[2]))
print(pool._servers[0].pid, flush=True)
time.sleep(600)
"""


def test_no_process_outlives_a_killed_parent(served: Served, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(ORPHAN_MAKER))
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, str(script), str(served.folder / "model"), str(tmp_path)],
        cwd=root, env=environment, stdout=subprocess.PIPE, text=True,
    ) as parent:  # fmt: skip
        guarded = psutil.Process(int(parent.stdout.readline()))
        family = wait_for(lambda: len(found := guarded.children(recursive=True)) >= 2 and [guarded, *found], 120)
        parent.send_signal(signal.SIGKILL)
    wait_for(lambda: not alive(family), 15)


def test_failed_start_shows_the_servers_last_log_lines(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "qwen2", "architectures": ["NoSuchModel"]}')
    with ServerPool.from_settings(tiny_settings(tmp_path / "model"), tmp_path) as pool:
        with pytest.raises(ServerError, match="exit code") as caught:
            pool.wait_ready()
    assert "NoSuchModel" in str(caught.value) and str(tmp_path / "server.log") in str(caught.value)


def test_given_url_that_nobody_serves() -> None:
    with EngineControl("http://127.0.0.1:9") as control:
        with pytest.raises(EngineCallError, match="no vLLM server answers"):
            control.weight_version()
    assert MODEL_FOLDER_VERSION < 0
