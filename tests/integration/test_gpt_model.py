"""A two-layer GPTModel through forward, log-probs and entropy, policy loss, backward and optimizer, both heads, against
the Hugging Face model in fp32 on the CPU with the papers' loss token by token and torch's AdamW."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrl.algorithms.aggregate import token_mean
from pyrl.algorithms.policy_loss import policy_loss
from pyrl.config import ParallelConfig, RunConfig
from pyrl.data.packing import pack
from pyrl.learner.learner import Learner
from pyrl.learner.parallel import Parallel, destroy_parallel, init_parallel
from pyrl.ops import reference
from pyrl.types import PackedBatch, Sequence
from tests.learner.tiny import hf_logprobs, random_sequences, run_config, save_tiny_model

UPDATES = 3
SEQUENCES = random_sequences(8, seed=3)
TOKENS = sum(len(s.response_ids) for s in SEQUENCES)
OPTIMIZER = {"lr": 1.5e-3, "eps": 1e-5, "clip_grad": 0.1}
METHODS: dict[str, dict[str, Any]] = {
    "clip_higher": {"clip_ratio_low": 0.05, "clip_ratio_high": 0.1, "clip_ratio_c": 1.2},
    "clip_cov": {"clip_ratio_low": 0.1, "clip_ratio_high": 0.1},
    "kl_cov": {"kl_cov_coef": 0.5},
}
HEADS = ["unfused", "fused"]


def chosen(uid: int) -> bool:
    """A third of the tokens, in place of a selection."""
    return uid % 3 == 0


def uids_of(sequence: Sequence) -> list[int]:
    return [sequence.sample_index * 2**24 + i for i in range(len(sequence.response_ids))]


@pytest.fixture(scope="module")
def parallel() -> Iterator[Parallel]:
    yield init_parallel(ParallelConfig())
    destroy_parallel()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 32, which every attention kernel takes."""
    path = tmp_path_factory.mktemp("gpt") / "model"
    save_tiny_model("qwen2", path, head_dim=32)
    return path


def train_megatron(config: RunConfig, parallel: Parallel) -> list[dict[str, Any]]:
    """The product's own updates; per update its loss, gradient norm, and log-prob and entropy by token uid."""
    learner = Learner(config, parallel)
    batches = [pack(SEQUENCES[i::2], pad_multiple=8).to(parallel.device) for i in range(2)]
    for batch, score in zip(batches, learner.score(batches), strict=True):
        batch.old_logprobs = score.logprobs
        if config.loss.name != "clip_higher":
            batch.selected = batch.token_uids % 3 == 0
    updates = []
    for number in range(UPDATES):

        def loss_fn(
            batch: PackedBatch, logprobs: torch.Tensor, entropy: torch.Tensor, first: bool = number == 0
        ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            old, mask = None if first else batch.old_logprobs, batch.response_mask
            loss, _ = policy_loss(logprobs, old, batch.advantages, mask, batch.selected, config.loss)
            part = token_mean(loss, mask, TOKENS)
            return part, {"loss": part, "logprobs": logprobs, "entropy": entropy}

        result = learner.update(batches, loss_fn)
        update = {"loss": sum(o["loss"].item() for o in result.outputs), "grad_norm": result.grad_norm, "tokens": {}}
        for batch, output in zip(batches, result.outputs, strict=True):
            mask = batch.response_mask
            columns = (batch.token_uids[mask], output["logprobs"][mask], output["entropy"][mask])
            update["tokens"] |= {u: (p, h) for u, p, h in zip(*(c.tolist() for c in columns), strict=True)}
        updates.append(update)
    updates[-1]["parameters"] = {name: t.float().cpu() for name, t in learner.hf_weights()}
    return updates


def train_reference(folder: Path, name: str) -> list[dict[str, Any]]:
    """The same updates in plain torch, a sequence and a token at a time."""
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(folder, attn_implementation="eager").train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=OPTIMIZER["lr"], betas=(0.9, 0.999), eps=OPTIMIZER["eps"], weight_decay=0.0
    )
    before = [hf_logprobs(model, s)[0] for s in SEQUENCES]
    updates = []
    for number in range(UPDATES):
        optimizer.zero_grad()
        update: dict[str, Any] = {"loss": 0.0, "tokens": {}}
        for sequence, old in zip(SEQUENCES, before, strict=True):
            logprobs, entropy = hf_logprobs.__wrapped__(model, sequence)  # with gradient
            uids = uids_of(sequence)
            selected = torch.tensor([chosen(uid) for uid in uids])
            losses = reference.policy_loss(
                logprobs,
                None if number == 0 else old,
                torch.full_like(logprobs, sequence.advantage),
                torch.ones(len(uids), dtype=torch.bool),
                selected=None if name == "clip_higher" else selected,
                **METHODS[name],
            )
            loss = losses.sum() / TOKENS
            loss.backward()
            update["loss"] += loss.item()
            update["tokens"] |= {u: (p, h) for u, p, h in zip(uids, logprobs.tolist(), entropy.tolist(), strict=True)}
        update["grad_norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER["clip_grad"]).item()
        optimizer.step()
        updates.append(update)
    updates[-1]["parameters"] = {n: t.clone() for n, t in model.state_dict().items() if n != "lm_head.weight"}
    return updates


def config_of(folder: Path, name: str, **model: Any) -> RunConfig:
    return run_config(folder, model=model, loss={"name": name, **METHODS[name]}, optimizer=OPTIMIZER)


def gaps(got: dict[str, Any], want: dict[str, Any]) -> torch.Tensor:
    """|log-prob - wanted|, |entropy - wanted| of each token, [2, tokens]."""
    assert got["tokens"].keys() == want["tokens"].keys() and len(want["tokens"]) == TOKENS
    pairs = [torch.tensor([tokens[u] for u in sorted(tokens)]) for tokens in (got["tokens"], want["tokens"])]
    return (pairs[0] - pairs[1]).abs().T


@pytest.fixture(scope="module")
def references(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: train_reference(folder, name) for name in METHODS}


@pytest.mark.parametrize("lm_head", HEADS)
@pytest.mark.parametrize("name", METHODS)
def test_fp32(folder: Path, parallel: Parallel, references: dict[str, Any], name: str, lm_head: str) -> None:
    updates = train_megatron(config_of(folder, name, lm_head=lm_head), parallel)
    for got, want in zip(updates, references[name], strict=True):
        assert gaps(got, want).max() < 1e-4
        assert got["loss"] == pytest.approx(want["loss"], abs=2e-5)
        assert got["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-4)
        assert want["grad_norm"] > OPTIMIZER["clip_grad"], "clipping was not tried"
    assert updates[-1]["parameters"].keys() == references[name][-1]["parameters"].keys()
    for tensor, want in references[name][-1]["parameters"].items():
        error = (updates[-1]["parameters"][tensor] - want).norm() / want.norm()
        assert error < 1e-4, f"{tensor}: {error}"


def test_the_methods_differ_and_the_policy_moves(references: dict[str, Any]) -> None:
    for name, updates in references.items():
        assert gaps(updates[0], updates[-1])[0].max() > 0.3, name
        assert len({round(update["loss"], 4) for update in updates}) == UPDATES
    last = [updates[-1]["parameters"]["model.norm.weight"] for updates in references.values()]
    assert all((a - b).norm() > 1e-3 for a, b in zip(last, [*last[1:], last[0]], strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: bf16 and torch_varlen attention")
@pytest.mark.parametrize(
    ("lm_head", "logits_dtype"), [("unfused", "fp32"), ("fused", "fp32"), ("fused", "bf16")]
)  # the unfused head's logits have the model's dtype
@pytest.mark.parametrize("name", METHODS)
def test_bf16_on_cuda(
    folder: Path, parallel: Parallel, references: dict[str, Any], name: str, lm_head: str, logits_dtype: str
) -> None:
    config = config_of(folder, name, dtype="bf16", attention="torch_varlen", lm_head=lm_head, logits_dtype=logits_dtype)
    updates = train_megatron(config, parallel)
    assert updates[0]["grad_norm"] == pytest.approx(references[name][0]["grad_norm"], rel=0.03)
    # The Hugging Face model with bf16 activations on a CPU is off by 0.004 (mean), 0.03 (largest) and 0.5% in the first
    # two updates. Later ones are no measure: tokens that lie on a clip bound fall to either side.
    for got, want in zip(updates[:2], references[name][:2], strict=True):
        assert gaps(got, want).mean() < 0.015 and gaps(got, want).max() < 0.12
        assert got["loss"] == pytest.approx(want["loss"], rel=0.03, abs=0.002)
