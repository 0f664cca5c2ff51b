"""A run: its sections, and what they must agree on."""

from __future__ import annotations

from typing import Annotated, Any

import yaml
from pydantic import Field, model_validator

from pyrl.config.base import Integer, PositiveInt, Section
from pyrl.config.method import AlgorithmConfig, ClipCov, ControlConfig, KLCov, LossConfig, PPOClip
from pyrl.config.sections import (
    CheckpointConfig,
    DataConfig,
    EvaluationDuringConfig,
    InstrumentsConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RewardConfig,
    RolloutConfig,
    ValidationConfig,
)


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
    evaluation: EvaluationDuringConfig = EvaluationDuringConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    instruments: InstrumentsConfig = InstrumentsConfig()
    entropy_control: ControlConfig | None = None
    """What sets the strength of Clip-Cov or KL-Cov anew each step. None: it stays as configured."""

    @model_validator(mode="before")
    @classmethod
    def _every_update_of_kl_cov_acts(cls, tree: Any) -> Any:
        loss, algorithm = (tree.get(name) if isinstance(tree, dict) else None for name in ("loss", "algorithm"))
        single = isinstance(algorithm, dict) and algorithm.get("updates_per_rollout") == 1
        if single and isinstance(loss, dict) and loss.get("name") == "kl_cov":
            return tree | {"loss": {"first_update": "subgradient"} | loss}
        return tree

    @model_validator(mode="after")
    def _control_fits_the_loss(self) -> RunConfig:
        control, loss = self.entropy_control, self.loss
        if isinstance(loss, KLCov) and loss.first_update == "unpenalized" and self.algorithm.updates_per_rollout == 1:
            raise ValueError(
                "loss.first_update unpenalized with algorithm.updates_per_rollout 1: KL-Cov would do nothing; use "
                "subgradient, or more updates"
            )
        if control is None:
            return self
        if not isinstance(loss, ClipCov | KLCov):
            raise ValueError(f"entropy_control drives clip_cov or kl_cov, and loss.name is {loss.name}: leave it out")
        setting = loss.controlled_setting
        start = getattr(loss, setting)
        highest = getattr(control, "highest", None)
        if start < control.lowest or (highest is not None and start > highest):
            upper = "" if highest is None else f" and highest {highest}"
            raise ValueError(
                f"loss.{setting} {start}, where entropy_control starts, is not between its lowest {control.lowest}"
                f"{upper}: move one of them"
            )
        if highest is not None and setting == "clip_cov_ratio" and highest > 1:
            raise ValueError(f"entropy_control.highest {highest}: clip_cov_ratio is a fraction, use at most 1")
        return self

    @model_validator(mode="after")
    def _groups_carry_a_signal(self) -> RunConfig:
        if self.rollout.samples_per_prompt > 1:
            return self
        if self.algorithm.advantage != "reinforce_plus_plus":
            raise ValueError(
                f"rollout.samples_per_prompt 1 with algorithm.advantage {self.algorithm.advantage}, which subtracts "
                "the mean of the prompt's group: every advantage would be 0. Raise it, or use reinforce_plus_plus"
            )
        if self.rollout.dynamic_sampling.enabled:
            raise ValueError(
                "rollout.samples_per_prompt 1 with rollout.dynamic_sampling.enabled, which drops groups of one reward: "
                "every group would be dropped. Raise it, or switch dynamic sampling off"
            )
        return self

    @model_validator(mode="after")
    def _fields_agree(self) -> RunConfig:
        updates, groups = self.algorithm.updates_per_rollout, self.rollout.prompts_per_step
        if updates > groups:
            raise ValueError(
                f"algorithm.updates_per_rollout {updates} exceeds rollout.prompts_per_step {groups}: each update needs "
                "at least one group"
            )
        if self.loss.name == "gspo" and self.algorithm.loss_agg_mode != "seq-mean-token-mean":
            raise ValueError(
                f"loss gspo is a mean over responses: set algorithm.loss_agg_mode {self.algorithm.loss_agg_mode!r} to "
                "'seq-mean-token-mean'"
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
