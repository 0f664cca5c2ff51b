"""One rank's learner: its update against torch's own AdamW on the Hugging Face model, and what it refuses."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pyrl.config import ConfigError, ParallelConfig
from pyrl.data.packing import pack
from pyrl.learner import learner as learner_module
from pyrl.learner.checks import NonFiniteError
from pyrl.learner.learner import Learner
from pyrl.learner.parallel import Parallel, destroy_parallel, init_parallel
from pyrl.ops.device_flag import ValueErrors, device_flag
from pyrl.types import PackedBatch
from tests.learner.tiny import VOCAB, random_sequences, run_config, save_tiny_model

THREADS = 3
"""A number that nobody chooses by default on a small machine."""


@pytest.fixture(scope="module")
def parallel() -> Iterator[Parallel]:
    threads = torch.get_num_threads()
    yield init_parallel(ParallelConfig(threads=THREADS))
    destroy_parallel()
    torch.set_num_threads(threads)


def test_threads_are_those_of_the_settings(parallel: Parallel) -> None:
    assert torch.get_num_threads() == THREADS


def objective(batch: PackedBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> Any:
    """A loss that uses log-probs, entropy, advantages and mask; 100 is the denominator."""
    loss = (batch.response_mask * (-batch.advantages * logprobs - 0.3 * entropy)).sum() / 100
    return loss, {"logprobs": logprobs, "loss": loss}


def reference_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, sequences: list, clip: float) -> float:
    """The same objective on the Hugging Face model, a sequence at a time; returns the norm of the gradient."""
    optimizer.zero_grad()
    for sequence in sequences:
        ids = torch.tensor([sequence.prompt_ids + sequence.response_ids])
        start = len(sequence.prompt_ids)
        table = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        logprobs = table.gather(1, ids[0, start:, None])[:, 0]
        entropy = -(table.exp() * table).sum(-1)
        ((-sequence.advantage * logprobs - 0.3 * entropy).sum() / 100).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip if clip else math.inf)
    optimizer.step()
    return norm.item()


@pytest.mark.parametrize("distributed", [True, False], ids=["distributed optimizer", "replicated optimizer"])
@pytest.mark.parametrize("clip", [0.05, 0.0], ids=["clipped", "not clipped"])
def test_updates_equal_adamw_on_the_hugging_face_model(
    tmp_path: Path, parallel: Parallel, clip: float, distributed: bool
) -> None:
    model = save_tiny_model("qwen2", tmp_path).train()
    settings = {"lr": 1e-3, "betas": [0.8, 0.95], "weight_decay": 0.1, "clip_grad": clip}
    learner = Learner(
        run_config(tmp_path, optimizer=settings, parallel={"distributed_optimizer": distributed}), parallel
    )
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.8, 0.95), eps=1e-8)
    for step, micro_batches in enumerate((1, 3)):  # the number may change between updates
        sequences = random_sequences(9, seed=step)
        wanted = reference_step(model, optimizer, sequences, clip)
        result = learner.update([pack(sequences[i::micro_batches]) for i in range(micro_batches)], objective)
        assert result.grad_norm == pytest.approx(wanted, rel=1e-5)
        assert wanted > 0.05, "clipping was not tried"
    reference = model.state_dict()
    for name, tensor in learner.hf_weights():
        error = (tensor - reference[name]).norm() / reference[name].norm()
        assert error < 1e-5, f"{name}: {error}"


def test_outputs_and_scores_are_those_of_the_policy_before_the_update(tmp_path: Path, parallel: Parallel) -> None:
    save_tiny_model("llama", tmp_path)
    learner = Learner(run_config(tmp_path, optimizer={"lr": 1e-2}), parallel)
    batches = [pack(random_sequences(5, seed=i), pad_multiple=8) for i in range(2)]
    before = learner.score(batches)
    result = learner.update(batches, objective)
    assert [sorted(output) for output in result.outputs] == [["logprobs", "loss"]] * 2
    for score, output, batch in zip(before, result.outputs, batches, strict=True):
        assert score.logprobs.shape == score.entropy.shape == batch.tokens.shape
        torch.testing.assert_close(output["logprobs"], score.logprobs)
        assert not output["logprobs"].requires_grad
        assert output["loss"] == pytest.approx(objective(batch, score.logprobs, score.entropy)[0].item(), rel=1e-5)
    assert not torch.allclose(learner.score(batches)[0].logprobs, before[0].logprobs, atol=1e-3)


def parameters_of(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.hf_weights()}


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path: Path, parallel: Parallel) -> None:
    save_tiny_model("qwen2", tmp_path)
    learner = Learner(run_config(tmp_path), parallel)
    before = parameters_of(learner)
    batch = pack(random_sequences(4))

    def broken(batch: PackedBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> Any:
        return logprobs.sum() * float("nan"), {}

    with pytest.raises(NonFiniteError, match=r"loss is nan of micro-batch 0 in update 0, on rank 0"):
        learner.update([batch, batch], broken)
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.hf_weights())
    learner.update([batch], objective)  # and the bad gradient is gone
    assert all(tensor.isfinite().all() for _, tensor in learner.hf_weights())


def test_what_an_op_refused_on_the_device_stops_before_the_step(tmp_path: Path, parallel: Parallel) -> None:
    save_tiny_model("qwen2", tmp_path)
    learner = Learner(run_config(tmp_path), parallel)
    before = parameters_of(learner)

    def flagged(batch: PackedBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> Any:
        device_flag(parallel.device).bitwise_or_(torch.tensor(ValueErrors.SAME_UID))  # as the selection does on CUDA
        return objective(batch, logprobs, entropy)

    batch = pack(random_sequences(4))
    with pytest.raises(NonFiniteError, match=r"token_uids: got tokens with the same uid.*in update 0, on rank 0"):
        learner.update([batch], flagged)
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.hf_weights())
    learner.update([batch], objective)  # and the flag is clear


def test_an_infinite_gradient_stops_before_the_step(tmp_path: Path, parallel: Parallel) -> None:
    save_tiny_model("qwen2", tmp_path)
    learner = Learner(run_config(tmp_path), parallel)
    before = parameters_of(learner)
    root = lambda b, logprobs, entropy: ((logprobs.sum() - logprobs.sum().detach()).abs().sqrt(), {})  # noqa: E731
    with pytest.raises(NonFiniteError, match="grad_norm is"):
        learner.update([pack(random_sequences(4))], root)
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.hf_weights())


@pytest.mark.parametrize(
    ("tensor", "value", "bad"),
    [
        ("logprobs", 2e-5, True),
        ("logprobs", 5e-6, False),
        ("logprobs", float("-inf"), True),
        ("logprobs", float("nan"), True),
        ("entropy", -2e-5, True),
        ("entropy", -5e-6, False),
        ("entropy", math.log(VOCAB) + 1e-3, True),
        ("entropy", math.log(VOCAB) + 5e-6, False),
        ("entropy", float("nan"), True),
    ],
)
def test_impossible_token_values_are_named(
    tmp_path: Path, parallel: Parallel, monkeypatch: pytest.MonkeyPatch, tensor: str, value: float, bad: bool
) -> None:
    save_tiny_model("qwen2", tmp_path)
    learner = Learner(run_config(tmp_path), parallel)
    real = learner_module.score_tokens

    def tampered(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        results = [t.clone() for t in real(*args, **kwargs)]
        results[["logprobs", "entropy"].index(tensor)][7] = value
        return results[0], results[1]

    monkeypatch.setattr(learner_module, "score_tokens", tampered)
    batch = pack(random_sequences(4))
    before = parameters_of(learner)
    if not bad:
        learner.score([batch])
        return
    with pytest.raises(NonFiniteError, match=rf"{tensor} is .* at token 7 .* of micro-batch 0 .* on rank 0"):
        learner.score([batch])
    with pytest.raises(NonFiniteError, match=rf"{tensor} is .* at token 7 .* in update 0, on rank 0"):
        learner.update([batch], objective)
    assert all(torch.equal(before[name], tensor_) for name, tensor_ in learner.hf_weights())


def test_no_micro_batch_is_an_error(tmp_path: Path, parallel: Parallel) -> None:
    save_tiny_model("qwen2", tmp_path)
    learner = Learner(run_config(tmp_path), parallel)
    assert learner.pad_multiple == 1
    with pytest.raises(ValueError, match="micro_batches is empty"):
        learner.score([])
    with pytest.raises(ValueError, match="micro_batches is empty"):
        learner.update([], objective)


def test_a_full_disk_stops_an_export_and_leaves_nothing_behind(tmp_path: Path, parallel: Parallel) -> None:
    save_tiny_model("qwen2", tmp_path / "source")
    learner = Learner(run_config(tmp_path / "source"), parallel)
    learner.export_hf(tmp_path / "final")
    kept = (tmp_path / "final" / "model.safetensors").read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) // 2, limit[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*File too large"):
            learner.export_hf(tmp_path / "final")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["final", "source"]
    assert (tmp_path / "final" / "model.safetensors").read_bytes() == kept


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"padded_vocab_size": 128}, r"padded_vocab_size 128 is smaller than the model's vocabulary of 211"),
        ({"dtype": "bf16"}, r"model.dtype 'bf16' needs CUDA"),
        ({"attention": "flash_attn"}, r"model.attention 'flash_attn' needs CUDA"),
        ({"attention": "torch_varlen"}, r"model.attention 'torch_varlen' needs CUDA"),
    ],
)
def test_settings_that_cannot_run_here(tmp_path: Path, parallel: Parallel, model: dict[str, Any], message: str) -> None:
    save_tiny_model("qwen2", tmp_path)
    with pytest.raises(ConfigError, match=message):
        Learner(run_config(tmp_path, model=model), parallel)


def test_memory_is_the_peak_of_this_process_in_bytes(tmp_path: Path, parallel: Parallel) -> None:
    save_tiny_model("qwen2", tmp_path)
    learner = Learner(run_config(tmp_path), parallel)
    resident = psutil.Process().memory_info().rss
    assert 0.9 * resident <= learner.memory_bytes() <= 50 * resident  # earlier tests may have needed more


def test_an_update_holds_the_logits_once(tmp_path: Path, parallel: Parallel) -> None:
    """Their gradient takes their place; [T, V] is what a micro-batch costs most."""
    vocab = 20_000
    save_tiny_model("qwen2", tmp_path, vocab_size=vocab, num_hidden_layers=1)
    learner = Learner(run_config(tmp_path), parallel)
    batch = pack(random_sequences(40, vocab=vocab))
    learner.update([batch], objective)  # Adam's state and the gradient buffers are there from now on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        learner.update([batch], objective)
    changes = [e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    logits = len(batch.tokens) * vocab * 4
    assert 1.0 <= max(accumulate(changes)) / logits < 1.5
