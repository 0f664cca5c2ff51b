"""A small learner in real gloo processes, for the checkpoint tests: build, train, save, load, report."""

from __future__ import annotations

import io
import os
import socket
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

import torch

from tests.ops.gloo import fork_server

DEADLINE_SECONDS = 120.0
VOCAB, SEQUENCE, BATCH = 64, 12, 4


@dataclass(frozen=True)
class Layout:
    """How the job is laid out, and which kind of optimizer it has."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    distributed_optimizer: bool = True
    bf16: bool = False
    hidden: int = 16

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp


@dataclass
class Job:
    """What a worker function gets: the model and its optimizer on this rank, and a log of the updates."""

    layout: Layout
    model: list[torch.nn.Module]
    optimizer: Any
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)

    def parameters(self) -> dict[str, torch.Tensor]:
        """This rank's parameters by name."""
        return {n: p.detach().clone() for chunk in self.model for n, p in chunk.named_parameters()}

    def train(self, first: int, count: int) -> None:
        """Updates number `first`, `first` + 1, ...; each has one batch of its own, split over data-parallel ranks."""
        for number in range(first, first + count):
            loss, norm = _update(self, number)
            self.losses.append(loss)
            self.grad_norms.append(norm)


def run(layout: Layout, work: Callable[..., Any], *args: Any, build: Callable[..., Any] | None = None) -> list[Any]:
    """Run `work(job, *args)` on every rank in fresh processes; returns their results in rank order.

    `work` is a module-level function, and so is `build`: (layout, Parallel) -> what `work` gets as `job`. Fails with
    the first traceback, or at the deadline.
    """
    context = fork_server()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes, pipes = [], []
    for rank in range(layout.world_size):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_worker, args=(sender, rank, port, layout, work, args, build), daemon=True)
        process.start()
        sender.close()
        processes.append(process)
        pipes.append(receiver)
    try:
        return _collect(pipes)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _collect(pipes: list[Any]) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        ready = wait([p for i, p in enumerate(pipes) if i not in results], timeout=DEADLINE_SECONDS)
        if not ready:
            raise TimeoutError(f"ranks {sorted(set(range(len(pipes))) - set(results))} gave no result in time")
        for pipe in ready:
            rank = pipes.index(pipe)
            try:
                outcome, value = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)
            except EOFError:
                outcome, value = "died", "the process ended without a result"
            if outcome != "ok":
                raise AssertionError(f"rank {rank} {outcome}:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(pipes))]


def _worker(sender: Any, rank: int, port: int, layout: Layout, work: Callable, args: tuple, build: Any) -> None:
    address = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": layout.world_size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in address.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    try:
        from pyrl.config import ParallelConfig
        from pyrl.learner.parallel import init_parallel

        parallel = init_parallel(ParallelConfig(tp=layout.tp, pp=layout.pp, timeout_seconds=DEADLINE_SECONDS))
        outcome = ("ok", work(build(layout, parallel) if build else _build(layout), *args))
    except BaseException:
        outcome = ("failed", traceback.format_exc())
    buffer = io.BytesIO()  # pickled tensors would need this process to stay alive until they are read
    torch.save(outcome, buffer)
    sender.send_bytes(buffer.getvalue())


def _build(layout: Layout) -> Job:
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.transformer import TransformerConfig

    dtype = torch.bfloat16 if layout.bf16 else torch.float32
    config = TransformerConfig(
        num_layers=2, hidden_size=layout.hidden, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=24,
        kv_channels=6, normalization="RMSNorm", gated_linear_unit=True, activation_func=torch.nn.functional.silu,
        add_bias_linear=False, add_qkv_bias=True, hidden_dropout=0.0, attention_dropout=0.0,
        use_cpu_initialization=True, gradient_accumulation_fusion=False, bias_dropout_fusion=False,
        masked_softmax_fusion=False, bias_activation_fusion=False, apply_rope_fusion=False, persist_layer_norm=False,
        tensor_model_parallel_size=layout.tp, pipeline_model_parallel_size=layout.pp, pipeline_dtype=dtype,
        params_dtype=dtype, bf16=layout.bf16,
    )  # fmt: skip
    model = GPTModel(
        config, get_gpt_layer_local_spec(normalization="RMSNorm"), vocab_size=VOCAB, max_sequence_length=SEQUENCE,
        pre_process=parallel_state.is_pipeline_first_stage(), post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=True, position_embedding_type="rope",
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            tied = "embedding.word_embeddings.weight" if name == "output_layer.weight" else name
            generator = torch.Generator().manual_seed(zlib.crc32(tied.encode()))
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    model.to(dtype)  # the norms' weights too, which Megatron leaves in fp32
    wrapped = DistributedDataParallel(
        config,
        DistributedDataParallelConfig(
            use_distributed_optimizer=layout.distributed_optimizer, overlap_grad_reduce=False
        ),
        model,
    )
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        model.setup_embeddings_and_output_layer()
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam", lr=1e-2, weight_decay=0.01, clip_grad=1.0, bf16=layout.bf16, params_dtype=dtype,
            use_distributed_optimizer=layout.distributed_optimizer,
        ),
        [wrapped],
    )  # fmt: skip
    return Job(layout, [wrapped], optimizer)


def _update(job: Job, number: int) -> tuple[float, float]:
    from megatron.core import parallel_state
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.utils import get_model_config

    dp_rank = parallel_state.get_data_parallel_rank()
    generator = torch.Generator().manual_seed(1000 * number)
    tokens = torch.randint(VOCAB, (BATCH, SEQUENCE), generator=generator).chunk(job.layout.dp)[dp_rank]
    mask = torch.triu(torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool), diagonal=1)[None, None]
    positions = torch.arange(SEQUENCE).expand(len(tokens), -1)

    def forward(_: Any, chunk: torch.nn.Module) -> tuple[torch.Tensor, Callable]:
        losses = chunk(tokens, positions, mask, labels=tokens.roll(-1, dims=1))
        return losses, lambda out: (out.float().mean(), {"loss": out.detach().float().mean()})

    chunk = job.model[0]
    get_model_config(chunk).finalize_model_grads_func = finalize_model_grads
    chunk.zero_grad_buffer()
    job.optimizer.zero_grad()
    reports = get_forward_backward_func()(
        forward_step_func=forward, data_iterator=None, model=job.model, num_microbatches=1, seq_length=SEQUENCE,
        micro_batch_size=len(tokens), forward_only=False,
    )  # fmt: skip
    _, norm, _ = job.optimizer.step()
    return float(reports[0]["loss"]) if reports else 0.0, float(norm)
