"""The learner: scores packed sequences under the policy and updates it, on Megatron-Core."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func

from pyrl.config import RunConfig
from pyrl.learner.checks import Watch
from pyrl.learner.exchange import broadcast_from_last_stage
from pyrl.learner.head import score_tokens
from pyrl.learner.model import build_policy
from pyrl.learner.packed import pack_inputs
from pyrl.learner.parallel import Parallel
from pyrl.learner.reference import FrozenWeights
from pyrl.types import PackedBatch, TokenScores, UpdateResult
from pyrl.weights.gather import iter_hf_weights
from pyrl.weights.hf_io import save_hf_folder

LossFunction = Callable[[PackedBatch, torch.Tensor, torch.Tensor], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""(batch, logprobs fp32 [T], entropy fp32 [T]) -> (scalar loss, outputs). The loss is already divided by the global
denominator: the gradient is its plain sum over micro-batches and data-parallel ranks."""


class Learner:
    """A policy, its optimizer, and the two passes over packed micro-batches. Every method is called on every rank."""

    def __init__(self, config: RunConfig, parallel: Parallel) -> None:
        """Load `config.model.path`. Raises ConfigError as `model.build_policy` does."""
        self.config = config
        self.parallel = parallel
        self.policy = build_policy(config.model, config.parallel, parallel)
        self.model: GPTModel = self.policy.model
        """Unwrapped, this rank's shard."""
        self.updates = 0
        """Optimizer updates of this process; names the update in errors."""
        self._rectangles = config.model.attention == "sdpa"
        self._model = DistributedDataParallel(
            self.policy.config,
            DistributedDataParallelConfig(
                grad_reduce_in_fp32=True, use_distributed_optimizer=config.parallel.distributed_optimizer
            ),
            self.model,
        )
        # Megatron hands over a token count to divide the gradient by; the loss has its denominator already.
        self.policy.config.finalize_model_grads_func = lambda model, num_tokens=None, **kwargs: finalize_model_grads(
            model, None, **kwargs
        )
        self.optimizer = _build_optimizer(config, self._model)
        # Taken here: a checkpoint that is loaded later is of the policy, and the reference stays what it was.
        self.reference = FrozenWeights(self.model) if config.algorithm.kl_loss_coef > 0 else None
        """`config.model.path` as it was loaded, where a KL term needs it."""
        self._forward_backward = get_forward_backward_func()

    @property
    def pad_multiple(self) -> int:
        """The number of tokens of a micro-batch must be a multiple of it."""
        return self.parallel.tp_size if self.config.parallel.sequence_parallel else 1

    def score(self, micro_batches: list[PackedBatch]) -> list[TokenScores]:
        """Log-probs and entropies under the current policy, without gradient, on every rank of the replica.

        Data-parallel ranks may hold different numbers of micro-batches. Raises NonFiniteError, on every rank;
        ValueError: a batch that is empty or not padded.
        """
        watch = Watch(self.parallel, self.policy.shape.vocab_size, f"the scores after {self.updates} updates")

        def keep(index: int, batch: PackedBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> Any:
            watch.tokens(index, logprobs, entropy)
            return logprobs.sum(), {"logprobs": logprobs, "entropy": entropy}

        with torch.no_grad():
            scores = self._run(micro_batches, keep, forward_only=True)
        watch.stop_if_bad()
        scores = broadcast_from_last_stage(scores, self.parallel)
        return [TokenScores(**values) for values in scores]

    def score_reference(self, micro_batches: list[PackedBatch]) -> list[TokenScores]:
        """As `score`, under the frozen reference. Raises RuntimeError where the run keeps none."""
        if self.reference is None:
            raise RuntimeError("this run keeps no reference: algorithm.kl_loss_coef is 0")
        with self.reference.in_place_of(self.model):
            return self.score(micro_batches)

    def update(self, micro_batches: list[PackedBatch], loss_fn: LossFunction) -> UpdateResult:
        """One optimizer update on the summed loss of all micro-batches of all data-parallel ranks.

        `loss_fn` runs on the last pipeline stage only, in the same order on every data-parallel rank, so it may call
        collectives over `parallel.dp_group`. The outputs reach every rank of the replica.

        Raises NonFiniteError before the parameters are touched; ValueError: a batch that is empty or not padded, or
        data-parallel ranks with different numbers of micro-batches.
        """
        watch = Watch(self.parallel, self.policy.shape.vocab_size, f"update {self.updates}")
        self._check_counts(len(micro_batches))
        self._model.zero_grad_buffer()
        self.optimizer.zero_grad()

        def loss(index: int, batch: PackedBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> Any:
            watch.tokens(index, logprobs, entropy)
            value, outputs = loss_fn(batch, logprobs, entropy)
            watch.loss(index, value)
            return value, {name: output.detach() for name, output in outputs.items()}

        outputs = self._run(micro_batches, loss, forward_only=False)
        grad_norm = self._step(watch)
        self.updates += 1
        return UpdateResult(grad_norm=grad_norm, outputs=broadcast_from_last_stage(outputs, self.parallel))

    def hf_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(Hugging Face name, full tensor) of the current policy; exhaust it on every rank of the replica, in lockstep.

        Order and shapes: `weights.families.hf_metadata(learner.policy.shape)`.
        """
        parallel = self.parallel
        return iter_hf_weights(self.model, self.policy.shape, tp_group=parallel.tp_group, pp_group=parallel.pp_group)

    def export_hf(self, folder: Path | str) -> None:
        """Write the current policy as a Hugging Face folder; returns on every rank once it is complete.

        Raises OSError (disk full, ...) on the writing rank and RuntimeError naming it on the others.
        """
        error: list[BaseException | str | None] = [None]
        if self.parallel.dp_rank == 0:
            weights = self.hf_weights()
            try:
                if self.parallel.is_leader:
                    save_hf_folder(weights, self.config.model.path, folder)
            except OSError as caught:
                error = [caught]
            for _ in weights:  # ranks that do not write, and all after an error, keep the gather in lockstep
                pass
        if self.parallel.world_size > 1:
            told = [f"export to {folder} failed on rank 0: {error[0]}" if error[0] else None]
            dist.broadcast_object_list(told, src=0, group=self.parallel.cpu_group)
            if told[0] and error[0] is None:
                raise RuntimeError(told[0])
        if isinstance(error[0], BaseException):
            raise error[0]

    def memory_bytes(self) -> int:
        """Peak memory of this rank so far: allocated on the GPU, or resident on the CPU."""
        if self.parallel.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.parallel.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _run(self, micro_batches: list[PackedBatch], head: Callable[..., Any], *, forward_only: bool) -> list[Any]:
        """Megatron's forward and backward schedule; `head` runs on the last stage, per micro-batch."""
        self._check_padding(micro_batches)
        tokens = max(len(batch.tokens) for batch in micro_batches)
        return self._forward_backward(
            forward_step_func=lambda batches, model: self._forward_step(next(batches), model, head),
            data_iterator=enumerate(micro_batches),
            model=self._model,
            num_microbatches=len(micro_batches),
            seq_length=tokens,
            micro_batch_size=1,
            forward_only=forward_only,
        )

    def _forward_step(self, item: tuple[int, PackedBatch], model: torch.nn.Module, head: Callable[..., Any]) -> Any:
        index, batch = item
        batch = batch.to(self.parallel.device)
        inputs = pack_inputs(batch, self.policy.inv_freq, self.policy.rope_scale, rectangles=self._rectangles)
        output = model(
            input_ids=batch.tokens[None],
            position_ids=batch.position_ids[None],
            attention_mask=None,
            packed_seq_params=inputs,
        )

        def loss(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
            logprobs, entropy = score_tokens(
                self.model,
                output,
                batch.labels,
                vocab_size=self.policy.shape.vocab_size,
                logits_dtype=self.config.model.logits_dtype,
                parallel=self.parallel,
            )
            value, outputs = head(index, batch, logprobs, entropy)
            return value, torch.zeros((), dtype=torch.int, device=value.device), outputs

        return output, loss

    def _step(self, watch: Watch) -> float:
        """Check, clip and apply the gradient; return its norm before clipping."""
        self.optimizer.prepare_grads()
        grad_norm = float(self.optimizer.get_grad_norm())
        watch.stop_if_bad(grad_norm)
        limit = self.config.optimizer.clip_grad
        if limit > 0:
            for optimizer in self.optimizer.chained_optimizers:
                if parameters := optimizer.get_parameters():
                    clip_grad_by_total_norm_fp32(parameters, limit, grad_norm)
        self.optimizer.step_with_ready_grads()
        return grad_norm

    def _check_padding(self, micro_batches: list[PackedBatch]) -> None:
        if not micro_batches:
            raise ValueError("micro_batches is empty: every data-parallel rank needs at least one micro-batch")
        for index, batch in enumerate(micro_batches):
            if len(batch.tokens) == 0 or len(batch.tokens) % self.pad_multiple:
                raise ValueError(
                    f"micro_batches[{index}] has {len(batch.tokens)} tokens, wanted a positive multiple of "
                    f"pad_multiple {self.pad_multiple}"
                )

    def _check_counts(self, count: int) -> None:
        if self.parallel.dp_size == 1:
            return
        bounds = torch.tensor([count, -count], device=self.parallel.device)
        dist.all_reduce(bounds, op=dist.ReduceOp.MAX, group=self.parallel.dp_group)
        most, fewest = bounds[0].item(), -bounds[1].item()
        if most != fewest:
            raise ValueError(
                f"data-parallel ranks hold {fewest} to {most} micro-batches (rank {self.parallel.rank}: {count}); "
                "every rank needs the same number"
            )


def _build_optimizer(config: RunConfig, model: DistributedDataParallel) -> Any:
    settings = config.optimizer
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=settings.lr,
            adam_beta1=settings.betas[0],
            adam_beta2=settings.betas[1],
            adam_eps=settings.eps,
            weight_decay=settings.weight_decay,
            clip_grad=settings.clip_grad,
            bf16=config.model.dtype == "bf16",
            use_distributed_optimizer=config.parallel.distributed_optimizer,
        ),
        [model],
    )
    # Megatron leaves this to its scheduler: norms and biases do not decay.
    for group in optimizer.param_groups:
        group["weight_decay"] = settings.weight_decay * group.get("wd_mult", 1.0)
    return optimizer
