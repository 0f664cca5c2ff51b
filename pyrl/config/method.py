"""Sections of a run that are its method: policy loss, controller of the entropy, advantage, aggregation and terms."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pyrl.config.base import Fraction, Number, PositiveInt, Section


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


class Ratio(Section):
    """-r A: no bound. KL-Cov's surrogate."""

    name: Literal["ratio"] = "ratio"


class CISPO(Section):
    """-sg(clip(r, 1 - low, 1 + high)) A log pi (arXiv 2506.13585): the weight is clipped, and every token keeps a
    gradient."""

    name: Literal["cispo"]
    clip_ratio_low: Annotated[Number, Field(ge=0.0, le=1.0)] = 1.0
    """1: no lower bound, as in the paper."""
    clip_ratio_high: Annotated[Number, Field(ge=0.0)] = 4.0
    """The weight is at most 1 + this: 5, as in ScaleRL (arXiv 2510.13786). The paper does not give its own."""


class GSPO(Section):
    """PPO's clip on one ratio a response, exp(mean d) (arXiv 2507.18071). It needs
    `algorithm.loss_agg_mode: seq-mean-token-mean`."""

    name: Literal["gspo"]
    clip_ratio_low: Annotated[Number, Field(ge=0.0, le=1.0)] = 3e-4
    clip_ratio_high: Annotated[Number, Field(ge=0.0)] = 4e-4
    """The paper's; a mean over tokens moves far less than a token's ratio."""


def _refuse_gspo(surrogate: Section) -> Section:
    if isinstance(surrogate, GSPO):
        raise ValueError(
            "Clip-Cov and KL-Cov choose single tokens, and surrogate 'gspo' has one ratio for a whole response, from "
            "which no token can be left out and in which none pays alone. Use ppo_clip, clip_higher, ratio or cispo"
        )
    return surrogate


AnySurrogate = PPOClip | ClipHigher | Ratio | CISPO | GSPO
Surrogate = Annotated[AnySurrogate, Field(discriminator="name"), AfterValidator(_refuse_gspo)]
"""What Clip-Cov and KL-Cov act on."""


class _CovScope(Section):
    cov_scope: Literal["mini_batch", "rollout_batch", "micro_batch"] = "mini_batch"
    """Tokens over which covariance is centred and ranked. `micro_batch` is what the paper's code does; it depends on
    the layout."""
    cov_logprobs: Literal["current", "old"] = "current"
    """Log-probs in the covariance: of the policy that the update starts from, as in the paper's code, or of the one
    that generated. `rollout_batch` knows the old ones alone."""
    chosen_by: Literal["covariance", "random"] = "covariance"
    """`random`: as large a share, drawn among all tokens. The control: what is left of the effect without the
    covariance."""


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
    surrogate: Surrogate | None = None
    """Loss of the tokens that are not drawn, with its own bounds. None: `ppo_clip` with the two bounds above."""

    @property
    def controlled_setting(self) -> str:
        """What `entropy_control` drives."""
        return "clip_cov_ratio"

    @model_validator(mode="after")
    def _band_is_not_empty(self) -> ClipCov:
        if self.clip_cov_lb >= self.clip_cov_ub:
            raise ValueError(f"clip_cov_lb {self.clip_cov_lb} must be below clip_cov_ub {self.clip_cov_ub}")
        return self

    @model_validator(mode="after")
    def _bounds_are_given_once(self) -> ClipCov:
        if self.surrogate is not None and (self.clip_ratio_low, self.clip_ratio_high) != (1.0, 1.0):
            raise ValueError(
                f"clip_ratio_low {self.clip_ratio_low} and clip_ratio_high {self.clip_ratio_high} of clip_cov are not "
                f"used with surrogate {self.surrogate.name!r}: give the surrogate's own bounds, and leave these out"
            )
        return self


class KLCov(_CovScope):
    """The paper's eq. 13-14: the tokens of largest covariance pay kl_cov_coef |log pi - log pi_old|; no PPO clip."""

    name: Literal["kl_cov"]
    kl_cov_ratio: Fraction = 2e-4
    """Share of valid tokens, a fraction (paper: 2e-3 for 7B, 2e-4 for 32B). 0: off."""
    kl_cov_coef: Annotated[Number, Field(ge=0.0)] = 1.0
    surrogate: Surrogate = Ratio()
    """Loss of all tokens, to which the penalty is added."""
    first_update: Literal["unpenalized", "subgradient"] = "unpenalized"
    """Of a rollout, where log pi is log pi_old and the penalty has a kink. `unpenalized`: no gradient, as published.
    `subgradient`: that of least norm, A becomes sign(A) max(|A| - kl_cov_coef, 0). The default is `subgradient` with
    `algorithm.updates_per_rollout: 1`, where every update is a first one."""

    @property
    def controlled_setting(self) -> str:
        """What `entropy_control` drives."""
        return "kl_cov_coef"


LossConfig = Annotated[AnySurrogate | ClipCov | KLCov, Field(discriminator="name")]


class PIControl(Section):
    """Hold the entropy at `target` by `kl_cov_coef` or `clip_cov_ratio`, which start at the loss's value
    (`pyrl.algorithms.controllers.pi`)."""

    name: Literal["pi"]
    target: Annotated[Number, Field(gt=0.0)]
    """Entropy, nats a token."""
    kp: Annotated[Number, Field(ge=0.0)] = 1.0
    """Natural logarithm of the setting per relative error of the entropy: off by half, with 1, is a factor of 1.6."""
    ki: Annotated[Number, Field(ge=0.0)] = 0.1
    """The same, added up every step."""
    lowest: Annotated[Number, Field(gt=0.0)]
    highest: Annotated[Number, Field(gt=0.0)]
    """Bounds of the setting, between which the loss's own value must lie."""


class LinearAnnealControl(Section):
    """Let `kl_cov_coef` or `clip_cov_ratio` fall in a straight line from the loss's value
    (`pyrl.algorithms.controllers.anneal`)."""

    name: Literal["linear_anneal"]
    anneal_steps: PositiveInt
    """Steps until 0."""
    lowest: Annotated[Number, Field(ge=0.0)] = 0.0
    """The setting does not fall below it."""


ControlConfig = Annotated[PIControl | LinearAnnealControl, Field(discriminator="name")]


class AlgorithmConfig(Section):
    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"] = "grpo"
    """`grpo`: (R - group mean) / (group standard deviation + 1e-6); the others: docs/algorithms.md."""
    loss_agg_mode: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"] = "token-mean"
    """How the tokens' losses become one number, over the whole mini-batch. `token-mean`: every token weighs the same;
    `seq-mean-token-mean`: every response; `seq-mean-token-sum-norm`: their sum / (responses x `loss_scale_factor`), for
    Dr. GRPO."""
    loss_scale_factor: PositiveInt | None = None
    """Tokens, the constant length of `seq-mean-token-sum-norm`. None: `rollout.max_response_tokens`."""
    entropy_coef: Annotated[Number, Field(ge=0.0)] = 0.0
    """Entropy bonus: each token's loss is lower by this times its full-vocabulary entropy, nats. 0: off. The paper
    tried 1e-4 to 1e-2: too little, or an explosion."""
    kl_loss_coef: Annotated[Number, Field(ge=0.0)] = 0.0
    """Reference KL: each token's loss is higher by this times an estimate of KL(policy || `model.path` as it was before
    training), nats. 0: off, and no copy of the weights is kept. The paper tried 1e-3 to 0.1."""
    kl_loss_type: Literal["k1", "k2", "k3"] = "k3"
    """The estimate, with d = log pi - log pi_ref: `k1` d, `k2` d^2 / 2, `k3` exp(-d) - 1 + d. As a loss k1 has a
    gradient of mean 0."""
    rollout_is_threshold: Annotated[Number, Field(ge=0.0)] = 0.0
    """Truncated importance sampling: each token's policy loss is weighed by min(pi_old / pi_rollout, this), for the gap
    between the learner's log-probs and the rollout engine's; usually 2, at least 1. 0: off."""
    updates_per_rollout: PositiveInt = 4
    """Optimizer updates on each rollout batch, every one on its own mini-batch."""

    @model_validator(mode="after")
    def _threshold_is_no_factor(self) -> AlgorithmConfig:
        if 0.0 < self.rollout_is_threshold < 1.0:
            raise ValueError(
                f"rollout_is_threshold {self.rollout_is_threshold} would cut the weight 1 of a token that both sides "
                "agree on: use 1 or more, or 0 for off"
            )
        return self

    @model_validator(mode="after")
    def _loss_scale_factor_is_used(self) -> AlgorithmConfig:
        if self.loss_scale_factor is not None and self.loss_agg_mode != "seq-mean-token-sum-norm":
            raise ValueError(
                f"loss_scale_factor {self.loss_scale_factor} is not used by loss_agg_mode {self.loss_agg_mode!r}: set "
                "that to 'seq-mean-token-sum-norm', or leave the factor out"
            )
        return self
