"""What a run is: pydantic models that own types, units, bounds and defaults. YAML files hold only differences.

`load_config(path, overrides)` reads one file, applies `key=value` overrides and validates. Every error is a
`ConfigError` whose text names the field, the value and the remedy. Ratios are fractions, never percent; 0 means off.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator


def _refuse_boolean(value: Any) -> Any:
    """pydantic reads true as 1."""
    if isinstance(value, bool):
        raise ValueError("wanted a number")
    return value


Number = Annotated[float, BeforeValidator(_refuse_boolean)]
Integer = Annotated[int, BeforeValidator(_refuse_boolean)]
Fraction = Annotated[Number, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[Integer, Field(gt=0)]
Seconds = Annotated[Number, Field(gt=0.0)]


class ConfigError(ValueError):
    """Bad input in a config file or on the command line (exit code 2)."""


class Section(BaseModel):
    """Base of every config section: unknown keys, NaN and infinity are errors, values are immutable, attribute
    docstrings are kept."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, strict=False, allow_inf_nan=False
    )


class ModelConfig(Section):
    path: Path
    """Hugging Face folder: config.json, safetensors and tokenizer (`pyrl convert` makes one from GGUF)."""
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


class DataConfig(Section):
    path: Path
    """Training prompts: parquet or JSONL in the `prompt` / `reward_model.ground_truth` / `data_source` schema. Public
    sets in this schema: BytedTsinghua-SIA/DAPO-Math-17k, PRIME-RL/Eurus-2-RL-Data."""
    validation_path: Path | None = None
    """Held-out prompts in the same schema."""
    template: Literal["chat", "r1_zero", "plain"] = "chat"
    """`chat`: the tokenizer's chat template; `r1_zero`: the R1-Zero conversation text; `plain`: the text as it is."""
    max_prompt_tokens: PositiveInt = 1024
    """A longer prompt is an error that names its row, unless `overlong_prompts` is `drop`."""
    overlong_prompts: Literal["error", "drop"] = "error"
    shuffle: bool = True
    """Permute the prompts each epoch by the run seed."""


class RewardConfig(Section):
    task: str = "math"
    """`math`, `countdown`, or `reasoning_gym:NAME`."""
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
    temperature: Annotated[Number, Field(gt=0.0)] = 1.0
    top_p: Annotated[Number, Field(gt=0.0, le=1.0)] = 1.0
    dynamic_sampling: DynamicSamplingConfig = DynamicSamplingConfig()
    max_num_seqs: PositiveInt = 256
    """Sequences that one server decodes together."""
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
    """Passed to `vllm.entrypoints.openai.api_server` as they are."""

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


class _DualClip(Section):
    clip_ratio_c: Annotated[Number, Field(ge=0.0)] = 0.0
    """For A < 0 the loss is at most -clip_ratio_c A (dual clip, arXiv 1912.09729, with 3); above 1. 0: off."""

    @model_validator(mode="after")
    def _dual_clip_is_above_one(self) -> _DualClip:
        if 0.0 < self.clip_ratio_c <= 1.0:
            raise ValueError(f"clip_ratio_c {self.clip_ratio_c} must be above 1, or 0 for off")
        return self


class PPOClip(_DualClip):
    """GRPO's surrogate: max(-r A, -clip(r, 1 - low, 1 + high) A)."""

    name: Literal["ppo_clip"] = "ppo_clip"
    clip_ratio_low: Annotated[Number, Field(ge=0.0, le=1.0)] = 0.2
    clip_ratio_high: Annotated[Number, Field(ge=0.0)] = 0.2


class ClipHigher(_DualClip):
    """DAPO's surrogate: `ppo_clip` with a wider upper bound."""

    name: Literal["clip_higher"]
    clip_ratio_low: Annotated[Number, Field(ge=0.0, le=1.0)] = 0.2
    clip_ratio_high: Annotated[Number, Field(ge=0.0)] = 0.28


class _CovScope(Section):
    cov_scope: Literal["mini_batch", "rollout_batch", "micro_batch"] = "mini_batch"
    """Tokens over which covariance is centred and ranked. `micro_batch` is what the paper's code does; it depends on
    the layout."""


class ClipCov(_CovScope):
    """The paper's eq. 11-12: tokens drawn from a band of covariances get no gradient."""

    name: Literal["clip_cov"]
    clip_cov_ratio: Fraction = 2e-4
    """Share of valid tokens, a fraction (paper: 2e-4). 0: off."""
    clip_cov_lb: Number = 1.0
    """The band is lb < covariance < ub, in nats (paper: 1 to 5)."""
    clip_cov_ub: Number = 5.0
    """Finite. For a band without an upper end write 1e9, which no covariance reaches."""
    clip_ratio_low: Annotated[Number, Field(ge=0.0, le=1.0)] = 1.0
    clip_ratio_high: Annotated[Number, Field(ge=0.0)] = 1.0
    """With 1 and 1 the ratio is clipped to [0, 2], as in the paper's runs."""

    @model_validator(mode="after")
    def _band_is_not_empty(self) -> ClipCov:
        if self.clip_cov_lb >= self.clip_cov_ub:
            raise ValueError(f"clip_cov_lb {self.clip_cov_lb} must be below clip_cov_ub {self.clip_cov_ub}")
        return self


class KLCov(_CovScope):
    """The paper's eq. 13-14: the tokens of largest covariance pay kl_cov_coef |log pi - log pi_old|; no PPO clip."""

    name: Literal["kl_cov"]
    kl_cov_ratio: Fraction = 2e-4
    """Share of valid tokens, a fraction (paper: 2e-3 for 7B, 2e-4 for 32B). 0: off."""
    kl_cov_coef: Annotated[Number, Field(ge=0.0)] = 1.0


LossConfig = Annotated[PPOClip | ClipHigher | ClipCov | KLCov, Field(discriminator="name")]


class AlgorithmConfig(Section):
    advantage: Literal["grpo"] = "grpo"
    """`grpo`: (R - group mean) / (group standard deviation + 1e-6)."""
    updates_per_rollout: PositiveInt = 4
    """Optimizer updates on each rollout batch, every one on its own mini-batch."""


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
    max_prompts: PositiveInt = 256


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


class RunConfig(Section):
    """One run. The run folder is given beside it and is not part of it, so a run folder can be moved."""

    seed: Annotated[Integer, Field(ge=0, lt=2**31)] = 0
    steps: PositiveInt = 100
    """Rollout steps."""
    deterministic: bool = False
    """On CPU alone: fixed request order and batch limits, so that a resumed run is bit-equal to an unbroken one. It is
    resumed with as many ranks and threads as its checkpoint was written with, and on the same kind of CPU."""
    model: ModelConfig
    data: DataConfig
    reward: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    loss: LossConfig = PPOClip()
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: ParallelConfig = ParallelConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _fields_agree(self) -> RunConfig:
        updates, groups = self.algorithm.updates_per_rollout, self.rollout.prompts_per_step
        if updates > groups:
            raise ValueError(
                f"algorithm.updates_per_rollout {updates} exceeds rollout.prompts_per_step {groups}: each update needs "
                "at least one group"
            )
        if self.parallel.sequence_parallel and self.parallel.tp == 1:
            raise ValueError("parallel.sequence_parallel needs parallel.tp > 1")
        if self.validation.every and self.data.validation_path is None:
            raise ValueError("validation.every is set but data.validation_path is not")
        if self.model.padded_vocab_size and self.model.padded_vocab_size % self.parallel.tp:
            raise ValueError(
                f"model.padded_vocab_size {self.model.padded_vocab_size} is not divisible by parallel.tp "
                f"{self.parallel.tp}: use a multiple, or null"
            )
        return self

    def to_yaml(self) -> str:
        """The resolved config, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_config(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a YAML file, apply `a.b=value` overrides (value in YAML syntax), validate.

    Raises ConfigError: file missing or not a mapping, an override without `=`, an unknown key (the nearest known one is
    named), a wrong type or a value out of bounds.
    """
    return parse_config(load_tree(path, overrides), origin=str(path))


def load_tree(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """The file as a mapping with the overrides applied, not yet validated; raises as `load_config`."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist")
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds {type(tree).__name__}, not a mapping of config keys")
    for override in overrides:
        _apply_override(tree, override)
    return tree


def parse_config(tree: dict[str, Any], origin: str = "config") -> RunConfig:
    """Validate a mapping; errors as in `load_config`."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        problems = "\n".join(f"  {_describe(e)}" for e in error.errors())
        raise ConfigError(f"{origin}:\n{problems}") from error


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form key=value")
    *parents, last = key.split(".")
    node = tree
    for part in parents:
        child = node.setdefault(part, {})
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {part!r} is a value, not a section")
        node = child
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: {error}") from error
    if isinstance(node[last], str):  # YAML 1.1 reads 1e-3 as a string
        try:
            node[last] = float(node[last])
        except ValueError:
            pass


def _describe(error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        nearest = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known here: {', '.join(known)}"
        return f"{'.'.join(location)}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{'.'.join(location)}: required but not given.{_field_help(location)}"
    where = ".".join(location) or "config"
    return f"{where}: {error['msg']} (got {error['input']!r})" if location else f"{where}: {error['msg']}"


def _section(location: list[str]) -> type[BaseModel] | None:
    """The config class at a dotted location; a union member is addressed by its tag."""
    current: Any = RunConfig
    for part in location:
        members = {c.model_fields["name"].default: c for c in (PPOClip,)} | {
            "clip_higher": ClipHigher, "clip_cov": ClipCov, "kl_cov": KLCov,
        }  # fmt: skip
        if part in members:
            current = members[part]
            continue
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            return None
        field = current.model_fields.get(part)
        if field is None:
            return None
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        current = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _known_keys(location: list[str]) -> list[str]:
    section = _section(location)
    return list(section.model_fields) if section else []


def _field_help(location: list[str]) -> str:
    section = _section(location[:-1])
    field = section.model_fields.get(location[-1]) if section else None
    return f" {' '.join(field.description.split())}" if field is not None and field.description else ""
