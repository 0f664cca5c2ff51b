"""Sections of a run that are not its method: model, layout, data, reward, rollout, optimizer, records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pyrl.config.base import Fraction, Integer, Number, PositiveInt, Seconds, Section


class ModelConfig(Section):
    path: Path
    """Hugging Face folder: config.json, safetensors and tokenizer (`pyrl convert` makes one from GGUF or .bin)."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Compute precision. bf16 keeps fp32 main weights and needs CUDA."""
    attention: Literal["flash_attn", "torch_varlen", "sdpa"] = "sdpa"
    """Core attention on packed sequences, by name: `sdpa` is exact and runs on CPU; the others need CUDA."""
    padded_vocab_size: PositiveInt | None = None
    """Rows of the embedding in Megatron. None: the smallest multiple of 128 tp that holds the vocabulary."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recomputation in the backward pass."""
    lm_head: Literal["unfused", "fused"] = "unfused"
    """`fused`: log-probs and entropy from hidden states and the head's weight, a chunk of the vocabulary at a time. The
    logits of all tokens, which `unfused` keeps for the backward pass with their gradient, are never held; they are
    computed twice."""
    logits_dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the fused head. fp32: as the products are summed; bf16: rounded, as by a rollout engine that rounds them. The
    unfused head's logits have `dtype`."""

    @model_validator(mode="after")
    def _logits_dtype_is_used(self) -> ModelConfig:
        if self.logits_dtype == "bf16" and self.lm_head == "unfused":
            raise ValueError("logits_dtype 'bf16' is of the fused head: set lm_head to 'fused', or leave it out")
        return self


class ParallelConfig(Section):
    tp: PositiveInt = 1
    """Tensor-parallel size."""
    pp: PositiveInt = 1
    """Pipeline-parallel size. Data-parallel size is world size / (tp pp)."""
    sequence_parallel: bool = False
    """Shard activations over the sequence between tensor-parallel regions; needs tp > 1."""
    distributed_optimizer: bool = True
    """Shard optimizer state over data-parallel ranks."""
    timeout_seconds: Seconds = 600.0
    """Deadline of every collective."""
    threads: PositiveInt | None = None
    """CPU threads of a rank's tensor operations. None: PyTorch's choice, which is `OMP_NUM_THREADS` (1 under torchrun)
    or else all cores. More than the model can use take time from the servers on the same machine."""


class ColumnsConfig(Section):
    """Of a file that holds plain values in place of the nested schema: one question a row."""

    prompt: str
    """Column of the question's text, which becomes the user's message."""
    ground_truth: str
    """Column of the answer: text or a number."""
    extractor: Literal["gsm8k", "boxed"] | None = None
    """What takes the answer out of a column that holds a worked solution: `gsm8k`, what follows the last `####`;
    `boxed`, the content of the last `\\boxed{}`. None: the column is the answer."""
    id: str | None = None
    """Column of a text or whole number that is each question's own. None: the row's number."""

    @property
    def names(self) -> list[str]:
        """The columns that a file must have."""
        return [name for name in (self.prompt, self.ground_truth, self.id) if name is not None]


class DataConfig(Section):
    path: Path
    """Training prompts: parquet or JSONL in the `prompt` / `reward_model.ground_truth` / `data_source` schema. Public
    sets in this schema: BytedTsinghua-SIA/DAPO-Math-17k, PRIME-RL/Eurus-2-RL-Data."""
    validation_path: Path | None = None
    """Held-out prompts in the same schema."""
    columns: ColumnsConfig | None = None
    """Of both files, where they are not in that schema. `data_source` is then the file's name without suffix."""
    template: Literal["chat", "r1_zero", "plain"] = "chat"
    """`chat`: the tokenizer's chat template; `r1_zero`: the R1-Zero conversation text; `plain`: the text as it is."""
    max_prompt_tokens: PositiveInt = 1024
    """A longer prompt is an error that names its row, unless `overlong_prompts` is `drop`."""
    overlong_prompts: Literal["error", "drop"] = "error"
    shuffle: bool = True
    """Permute the prompts each epoch by the run seed."""


class RewardConfig(Section):
    task: str = "math"
    """`math` or `math:paper`, `code` or `code:SECONDS`, `countdown`, `ring_walk`, or `reasoning_gym:NAME`."""
    timeout_seconds: Seconds = 5.0
    """Wall limit of one grading; past it the answer is unjudged and the worker is replaced."""
    workers: PositiveInt = 1
    """Grader processes a data-parallel leader keeps."""
    unjudged_alarm: Fraction = 0.01
    """Warn when a larger share of a step's completions could not be judged."""


class DynamicSamplingConfig(Section):
    enabled: bool = False
    """Drop groups whose rewards are all equal, and sample further prompts in their place."""
    max_refills: PositiveInt = 4
    """Rounds of refilling; after them the step goes on with the groups it has."""


class RolloutConfig(Section):
    urls: tuple[str, ...] = ()
    """vLLM servers that already run, started with the development RL endpoints. Empty: pyrl starts its own. Rank 0
    sends them the weights: with `shm` they must run on its machine, with `ipc` on the learners' GPUs. One that is
    restarted by whoever runs it is given the weights again."""
    servers_per_node: PositiveInt = 1
    tp: PositiveInt = 1
    """Tensor-parallel size of each server that pyrl starts."""
    transport: Literal["shm", "ipc", "nccl"] = "shm"
    """How weights travel: `shm` (CPU), `ipc` (server on the learner's GPU), `nccl` (other GPUs)."""
    prompts_per_step: PositiveInt = 64
    samples_per_prompt: PositiveInt = 8
    max_response_tokens: PositiveInt = 1024
    """A response this long without a stop token is graded as it stands and counted as truncated."""
    temperature: Annotated[Number, Field(ge=1e-6, le=1e6)] = 1.0
    """Bounds: those of `pyrl.ops.logprob_entropy`, beyond which its fp32 would overflow."""
    top_p: Annotated[Number, Field(gt=0.0, le=1.0)] = 1.0
    dynamic_sampling: DynamicSamplingConfig = DynamicSamplingConfig()
    max_num_seqs: PositiveInt = 256
    """Sequences that one server decodes together. It is given twice as many requests at a time, and at least 2,048; for
    `urls` that were started with more than 1,024, say it here."""
    threads: PositiveInt | None = None
    """OMP threads of a CPU server. None: all cores."""
    kv_cache_gib: Annotated[Number, Field(gt=0.0)] = 1.0
    """KV cache of a CPU server, GiB."""
    gpu_memory_utilization: Fraction = 0.5
    """Share of a GPU's memory a server may take."""
    request_timeout_seconds: Seconds = 300.0
    """Longest silence of a server: when it has answered none of a replica's requests for so long, they are tried again.
    Time in its queue does not count. It must exceed the time that a response of `max_response_tokens` takes beside all
    that the server decodes together; replicas that share a server wait for one another's requests too."""
    max_retries: Annotated[Integer, Field(ge=0)] = 3
    """Further tries of one request; a group that still fails is dropped and counted."""
    timeout_seconds: Seconds = 3600.0
    """Deadline of one rollout: generating and grading the prompts that are asked together, retries included. Ranks that
    wait for the slowest replica wait this long, whatever `parallel.timeout_seconds` is."""
    startup_timeout_seconds: Seconds = 600.0
    """How long a server may take to start or to start again."""
    sync_timeout_seconds: Seconds = 900.0
    """Deadline of one weight sync, a server's restart in the middle of it included."""
    extra_server_args: tuple[str, ...] = ()
    """Passed to vLLM's server as they are, as arguments of `vllm serve`."""

    @model_validator(mode="after")
    def _deadlines_agree(self) -> RolloutConfig:
        if self.timeout_seconds < self.request_timeout_seconds:
            raise ValueError(
                f"request_timeout_seconds {self.request_timeout_seconds:g} exceeds timeout_seconds "
                f"{self.timeout_seconds:g}, the deadline of the whole rollout: raise timeout_seconds"
            )
        return self

    @model_validator(mode="after")
    def _sampling_is_on_policy(self) -> RolloutConfig:
        if self.temperature != 1.0 or self.top_p != 1.0:
            raise ValueError(
                f"temperature {self.temperature} and top_p {self.top_p}: training samples at temperature 1 and top_p 1 "
                "so that rollout and learner describe the same policy"
            )
        return self


class OptimizerConfig(Section):
    lr: Annotated[Number, Field(gt=0.0)] = 1e-6
    """AdamW, constant rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Annotated[Number, Field(gt=0.0)] = 1e-8
    weight_decay: Annotated[Number, Field(ge=0.0)] = 0.0
    clip_grad: Annotated[Number, Field(ge=0.0)] = 1.0
    """Largest L2 norm of the global gradient. 0: no clipping."""
    max_tokens_per_micro_batch: PositiveInt = 16384
    """Token budget of one forward pass on one rank; a longer sequence gets a micro-batch of its own."""


class ValidationConfig(Section):
    every: Annotated[Integer, Field(ge=0)] = 0
    """Steps between evaluations on `data.validation_path`, which is also evaluated before the first and after the last
    step. 0: never."""
    samples_per_prompt: PositiveInt = 1
    final_samples_per_prompt: PositiveInt | None = None
    """After the last step, where pass@k is read from (`validation.jsonl`). None: `samples_per_prompt`."""
    max_prompts: PositiveInt = 256


class EvaluationDuringConfig(Section):
    """`pyrl evaluate` on the run's own policy, with the run's own servers."""

    every: Annotated[Integer, Field(ge=0)] = 0
    """Steps between evaluations, which also come before the first and after the last step. 0: never."""
    config: Path | None = None
    """Benchmarks, as for `pyrl evaluate` (`configs/eval/`). Its `model` and `server` have no part here."""
    overrides: tuple[str, ...] = ()
    """`key=value` for it, as `benchmarks.aime24.samples=8`."""

    @model_validator(mode="after")
    def _has_benchmarks(self) -> EvaluationDuringConfig:
        if self.every and self.config is None:
            raise ValueError("evaluation.every without evaluation.config: give one of configs/eval/")
        return self


class CheckpointConfig(Section):
    every: Annotated[Integer, Field(ge=0)] = 0
    """Steps between checkpoints; the last step is saved too. 0: never."""
    keep_last: PositiveInt = 2
    resume: Literal["auto", "never"] | Path = "auto"
    """`auto`: from the newest complete checkpoint of the run folder, if there is one. `never`: into a folder without a
    run. Or a checkpoint folder: of this run folder (the run goes back, and what it recorded and saved later is set
    aside) or of another run (into a folder without a run)."""
    export_hf: bool = True
    """Write the final policy as a Hugging Face folder `final/`."""


class InstrumentsConfig(Section):
    entropy_change_every: Annotated[Integer, Field(ge=0)] = 10
    """Steps between measurements of the entropy change that a step's updates make on the tokens they trained on. Each
    is one more forward pass over the rollout batch. 0: never."""
