"""Every metric of a step: its name, unit and meaning. The recorder refuses a name that is not here.

`docs/metrics.md` is this table as a page: `python -m pyrl.telemetry.names > docs/metrics.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Shape = Literal["number", "integer", "list", "mapping"]

COVARIANCE_TOP_SHARES = (2e-4, 2e-3, 2e-2, 2e-1, 5e-1)
"""Shares of tokens, as fractions, whose mean covariance is recorded: the columns of the paper's table 1."""

COVARIANCE_QUADRANTS = ("high_prob_high_adv", "high_prob_low_adv", "low_prob_high_adv", "low_prob_low_adv")
"""Tokens above and below the mean log-prob, and above and below the mean advantage."""

DIFFICULTY_BINS = ("0", "(0, 0.25]", "(0.25, 0.5]", "(0.5, 0.75]", "(0.75, 1)", "1")
"""Accuracies of a prompt group: the share of its judged responses that are right."""

ENTROPY_PREDICTORS = ("response_logp_adv", "response_logp_pi_adv", "token_logp_adv", "token_logp_pi_adv")
"""Covariances that predict the entropy change: of responses or of tokens; Cov(log pi, A) or Cov(log pi, pi A)."""

PHASES = ("rollout", "reward", "score", "update", "instruments", "sync", "checkpoint", "validation", "evaluation")
"""Disjoint parts of a step that are timed; what remains of `seconds_step` is the trainer's own work."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One column of `metrics.jsonl`."""

    group: str
    """Heading in the docs, prefix of the TensorBoard tag."""
    unit: str
    """`fraction` is checked to lie in [0, 1]; a percentage is never recorded."""
    meaning: str
    shape: Shape = "number"
    contract: bool = True
    """Present in every record, as null where undefined. The others appear only when the trainer knows them."""
    keys: Literal["source", "difficulty", "reason", "fault"] = "source"
    """Of a mapping: data source; accuracy of the prompt's group, one of `DIFFICULTY_BINS`; a grader's reason; or a
    fault of `telemetry.health`."""
    reproducible: bool = True
    """Equal, to the bit, in a resumed and in an unbroken deterministic run. Times and memory are not."""


def covariance_top_name(share: float) -> str:
    """`covariance_top_2e-4` for 2e-4; `share` is one of `COVARIANCE_TOP_SHARES`."""
    if share not in COVARIANCE_TOP_SHARES:
        raise ValueError(f"share {share}: no such metric, the recorded shares are {COVARIANCE_TOP_SHARES}")
    mantissa, exponent = f"{share:.0e}".split("e")
    return f"covariance_top_{mantissa}e{int(exponent)}"


def covariance_quadrant_name(quadrant: str) -> str:
    """`covariance_share_low_prob_high_adv`; `quadrant` is one of `COVARIANCE_QUADRANTS`."""
    return f"covariance_share_{quadrant}"


def _seconds(phase: str, meaning: str) -> tuple[str, Metric]:
    return f"seconds_{phase}", Metric("time", "s", meaning, reproducible=False)


_PREDICTOR_TEXT = {
    "response_logp_adv": "Cov(log pi, A) over the responses of a prompt, log pi length-normalised (the mean over the "
                         "response's tokens)",
    "response_logp_pi_adv": "Cov(log pi, pi A) over the responses of a prompt, log pi length-normalised and pi its "
                            "exponential",
    "token_logp_adv": "Cov(log pi, A) over the response tokens of a prompt",
    "token_logp_pi_adv": "Cov(log pi, pi A) over the response tokens of a prompt",
}  # fmt: skip


def _by_difficulty(what: str) -> Metric:
    return Metric("dynamics", "nats", f"{what}, by the accuracy of the prompt's group (the share of its judged "
                  "responses that are right); accuracies without a group are left out.", "mapping", contract=False,
                  keys="difficulty")


def _predictor_metrics(name: str) -> dict[str, Metric]:
    """What is recorded of one predictor of the entropy change."""
    text, cov = _PREDICTOR_TEXT[name], f"`cov_{name}`"
    unit = "items of the group" if name.startswith("token") else "responses"
    return {
        f"cov_{name}": Metric("dynamics", "nats", f"{text}, under the generating policy, centred in each prompt group, "
                              f"then the mean over groups, weighed by {unit}; groups with fewer than two are left "
                              "out."),
        f"cov_{name}_by_difficulty": _by_difficulty(f"The same as {cov}"),
        f"entropy_change_slope_{name}": Metric(
            "dynamics", "ratio", f"eta of dH = -eta {cov}, least squares through the origin over the measured steps so "
            "far: the effective learning rate. Null before 5 of them.", contract=False),
        f"entropy_change_correlation_{name}": Metric(
            "dynamics", "correlation", f"Pearson's, of -dH with {cov} over the measured steps so far: 1 is what the "
            "theory says. Null before 5 of them.", contract=False),
        f"entropy_change_lag1_correlation_{name}": Metric(
            "dynamics", "correlation", f"The same, of -dH with {cov} of the measured step before.", contract=False),
        f"entropy_change_predicted_{name}": Metric(
            "dynamics", "nats", f"-eta {cov} of this step, with the eta of the steps before it alone. Null while there "
            "is none.", contract=False),
    }  # fmt: skip


METRICS: dict[str, Metric] = {
    # where the run is
    "step": Metric("progress", "count", "Rollout steps done, this one included; 0 is the state before training.",
                   "integer"),
    "gradient_step": Metric("progress", "count", "Optimizer updates done since the start of the run.", "integer"),
    "policy_version": Metric("progress", "version", "Version of the weights that generated this step's responses.",
                             "integer"),
    "prompts_consumed": Metric("progress", "count", "Prompts drawn from the data since the start of the run.",
                               "integer", contract=False),
    "alarms": Metric("progress", "count", "1 for each fault that holds in this step: training that teaches nothing, or "
                     "breaks (`pyrl.telemetry.health`).", "mapping", contract=False, keys="fault"),
    # reward
    "reward_mean": Metric("reward", "reward", "Mean over all judged completions, before filtering."),
    "reward_mean_kept": Metric("reward", "reward", "Mean over the judged completions that were trained on."),
    "reward_by_source": Metric("reward", "reward", "`reward_mean` of each data source.", "mapping", contract=False),
    "verdicts_right": Metric("reward", "count", "Completions judged right.", "integer"),
    "verdicts_wrong": Metric("reward", "count", "Completions judged wrong.", "integer"),
    "verdicts_unjudged": Metric("reward", "count", "Completions that could not be judged; left out of every reward.",
                                "integer"),
    "verdict_reasons": Metric("reward", "count", "How often the grader gave each reason, right ones included.",
                              "mapping", contract=False, keys="reason"),
    "validation_reward_mean": Metric("reward", "reward", "Mean over the judged completions of the held-out prompts."),
    "validation_reward_by_source": Metric("reward", "reward", "`validation_reward_mean` of each data source.",
                                          "mapping", contract=False),
    "validation_n": Metric("reward", "count", "Judged completions behind `validation_reward_mean`.", "integer"),
    "evaluation_step": Metric("reward", "", "Step whose policy `evaluation_avg_at_k` is of: grading takes place beside "
                              "the steps that follow it.", "integer", contract=False, reproducible=False),
    "evaluation_avg_at_k": Metric("reward", "fraction", "avg@k of each benchmark (`evaluations/step_...` has the "
                                  "intervals).", "mapping", contract=False, reproducible=False),
    "validation_unjudged": Metric("reward", "count", "Held-out completions that could not be judged.", "integer",
                                  contract=False),
    # policy
    "entropy": Metric("policy", "nats", "Full-vocabulary entropy at temperature 1 under the generating policy, mean "
                      "over the response tokens that are trained on: all of the rollout batch but groups that dynamic "
                      "sampling dropped and responses without a verdict."),
    "entropy_response_mean": Metric("policy", "nats", "The same, as the mean of the responses' means (eq. 5 of "
                                    "arXiv 2505.22617)."),
    "entropy_by_source": Metric("policy", "nats", "`entropy` of the tokens of each data source.", "mapping",
                                contract=False),
    "entropy_by_difficulty": Metric("policy", "nats", "`entropy` by the accuracy of the prompt's group (the share of "
                                    "its judged responses that are right); accuracies without a group are left out.",
                                    "mapping",
                                    contract=False, keys="difficulty"),
    "entropy_response_mean_by_source": Metric("policy", "nats", "`entropy_response_mean` of each data source.",
                                              "mapping", contract=False),
    "entropy_response_mean_by_difficulty": Metric("policy", "nats", "`entropy_response_mean` by the accuracy of the "
                                                  "prompt's group.", "mapping", contract=False, keys="difficulty"),
    "logprob_gap_mean": Metric("policy", "nats", "|rollout log-prob - learner log-prob| under the same weights, mean "
                               "over the same tokens."),
    "logprob_gap_p99": Metric("policy", "nats", "The same gap, 99th percentile."),
    "logprob_gap_max": Metric("policy", "nats", "The same gap, maximum."),
    # covariance and selection
    "covariance_mean": Metric("covariance", "nats", "Token covariance of log-prob and advantage over the valid "
                              "tokens, mean over the step's updates."),
    **{
        covariance_top_name(share): Metric("covariance", "nats", f"Mean covariance of the top {share:g} of the tokens "
                                           "(a fraction), mean over updates.")
        for share in COVARIANCE_TOP_SHARES
    },
    **{
        covariance_quadrant_name(quadrant): Metric(
            "covariance", "fraction", f"Share of the sum of |covariance| of the tokens of {text} (above or below the "
            f"mean over the valid tokens), where covariance is {sign}; mean over updates."
        )
        for quadrant, text, sign in zip(
            COVARIANCE_QUADRANTS,
            ("high log-prob and high advantage", "high log-prob and low advantage", "low log-prob and high advantage",
             "low log-prob and low advantage"),
            ("positive", "negative", "negative", "positive"), strict=True)
    },
    "entropy_control_value": Metric("covariance", "ratio", "`clip_cov_ratio` or `kl_cov_coef` of the step's updates, "
                                    "as `entropy_control` set it.", contract=False),
    "selected_tokens": Metric("covariance", "tokens", "Tokens chosen by Clip-Cov or KL-Cov, sum over updates; null "
                              "for a loss that chooses none.", "integer"),
    "selected_tokens_updates": Metric("covariance", "tokens", "`selected_tokens` of each update.", "list",
                                      contract=False),
    # predicted and measured entropy change, the law
    "entropy_change_measured": Metric("dynamics", "nats", "dH: `entropy` after the step's updates minus before, on the "
                                      "same tokens. Null in steps without the measurement "
                                      "(`instruments.entropy_change_every`)."),
    "entropy_change_response_mean": Metric("dynamics", "nats", "The same change of `entropy_response_mean`.",
                                           contract=False),
    "entropy_change_by_difficulty": _by_difficulty("The same as `entropy_change_measured`"),
    "entropy_change_measurements": Metric("dynamics", "count", "Steps so far in which dH was measured.", "integer",
                                          contract=False),
    **{name: metric for predictor in ENTROPY_PREDICTORS for name, metric in _predictor_metrics(predictor).items()},
    "entropy_law_a": Metric("dynamics", "reward", "a of `reward_mean` = -a exp(`entropy`) + b, least squares over the "
                            "steps so far (eq. 6 of arXiv 2505.22617). Null before 20 steps and while entropy or "
                            "reward are constant.", contract=False),
    "entropy_law_b": Metric("dynamics", "reward", "b of the same.", contract=False),
    "entropy_law_r2": Metric("dynamics", "fraction", "Share of the reward's variance that the law explains.",
                             contract=False),
    "entropy_budget_left": Metric("dynamics", "ratio", "Share of the reward gain from the start to entropy 0 that the "
                                  "law leaves to be had: (exp H - 1) / (exp H0 - 1), with exp H the mean of the last 5 "
                                  "steps and exp H0 of the first 5; above 1 where entropy has grown. Null while the "
                                  "fit's R2 is below 0.5 or its a not positive.", contract=False),
    "reward_ceiling_predicted": Metric("dynamics", "reward", "The law's reward at entropy 0, b - a. Null as before.",
                                       contract=False),
    # optimization
    "loss": Metric("optimization", "nats", "The whole loss, with its one global denominator, mean over updates."),
    "loss_updates": Metric("optimization", "nats", "`loss` of each update.", "list"),
    "grad_norm": Metric("optimization", "L2 norm", "Global gradient before clipping, mean over updates."),
    "grad_norm_updates": Metric("optimization", "L2 norm", "`grad_norm` of each update.", "list"),
    "approx_kl": Metric("optimization", "nats", "KL(old || current policy) by the k3 estimate r - 1 - log r, r = pi / "
                        "pi_old: mean over valid tokens, then over updates. The first update of a step has 0."),
    "ratio_mean": Metric("optimization", "ratio", "pi / pi_old: mean over valid tokens, then over updates."),
    "kl_penalty": Metric("optimization", "nats", "KL-Cov's penalty as a part of `loss`, mean over updates; null for "
                         "other losses."),
    "clip_fraction": Metric("optimization", "fraction", "Valid tokens whose PPO clip binds, mean over updates; null "
                            "for a loss without clip."),
    "clip_fraction_low": Metric("optimization", "fraction", "The part of it at the lower bound."),
    "clip_fraction_high": Metric("optimization", "fraction", "The part of it at the upper bound."),
    "entropy_bonus": Metric("optimization", "nats", "`algorithm.entropy_coef` times the entropy: mean over valid "
                            "tokens, then over updates. It lowers the loss; null without it."),
    "reference_kl": Metric("optimization", "nats", "KL(policy || reference) by the estimate `algorithm.kl_loss_type`, "
                           "before its coefficient: mean over valid tokens, then over updates; null without a "
                           "reference."),
    "rollout_is_weight_mean": Metric("optimization", "ratio", "min(pi_old / pi_rollout, `algorithm."
                                     "rollout_is_threshold`): mean over valid tokens, then over updates; null without "
                                     "the correction."),
    "rollout_is_capped_fraction": Metric("optimization", "fraction", "Valid tokens whose weight was cut to that "
                                         "threshold, mean over updates."),
    # rollout batch
    "response_tokens": Metric("rollout", "tokens", "Response tokens generated in this step, in kept and in "
                              "dropped groups.", "integer"),
    "response_length_mean": Metric("rollout", "tokens", "Response length, the stop token included, mean."),
    "response_length_max": Metric("rollout", "tokens", "Response length, maximum.", "integer"),
    "truncated_fraction": Metric("rollout", "fraction", "Completions that reached the token limit without a stop."),
    "rollout_logprobs_nonfinite": Metric("rollout", "count", "Response tokens whose rollout log-prob was not finite, "
                                         "in neither the loss nor its denominator.", "integer", contract=False),
    "groups_kept": Metric("rollout", "count", "Groups that reached the learner.", "integer"),
    "groups_dropped_uniform": Metric("rollout", "count", "Groups dropped by dynamic sampling: all rewards equal.",
                                     "integer"),
    "groups_dropped_unjudged": Metric("rollout", "count", "Groups dropped because no response could be judged.",
                                      "integer"),
    "groups_failed": Metric("rollout", "count", "Groups dropped because a request failed after every retry.",
                            "integer"),
    "refills": Metric("rollout", "count", "Further rounds of sampling that replaced dropped groups.", "integer"),
    # time and memory
    **dict([
        _seconds("step", "The whole step, wall clock."),
        _seconds("rollout", "Generating responses."),
        _seconds("reward", "Grading them, as far as the trainer waited for it."),
        _seconds("score", "Forward passes for old and reference log-probs."),
        _seconds("update", "Forward, backward and optimizer of all updates."),
        _seconds("instruments", "Covariance predictors, selected tokens, and the forward pass that measures the "
                 "entropy change."),
        _seconds("sync", "Sending the new weights to the rollout engines."),
        _seconds("checkpoint", "Writing a checkpoint."),
        _seconds("validation", "Generating and grading held-out prompts."),
        _seconds("evaluation", "Generating the samples of the benchmarks, which are graded beside the next steps."),
    ]),
    "tokens_per_second": Metric("time", "tokens/s", "`response_tokens` / `seconds_step`.", reproducible=False),
    "memory_learner_bytes": Metric("memory", "bytes", "Peak memory of rank 0: resident set on CPU, "
                                   "allocated device memory on CUDA.", "integer", reproducible=False),
    "memory_reference_bytes": Metric("memory", "bytes", "Of it, the frozen reference weights of rank 0; null without "
                                     "a reference.", "integer", reproducible=False),
}  # fmt: skip

GROUP_TITLES = {
    "progress": "Progress",
    "reward": "Reward",
    "policy": "Policy",
    "covariance": "Covariance and selection",
    "dynamics": "Entropy dynamics",
    "optimization": "Optimization",
    "rollout": "Rollout batch",
    "time": "Time",
    "memory": "Memory",
}


def reproducible_names() -> tuple[str, ...]:
    """Metrics that a resumed deterministic run repeats to the bit: all but times, memory and when it was graded."""
    return tuple(name for name, metric in METRICS.items() if metric.reproducible)


def to_markdown() -> str:
    """The table as the page `docs/metrics.md`."""
    lines = [
        "# Metrics",
        "",
        "<!-- Generated: python -m pyrl.telemetry.names > docs/metrics.md -->",
        "",
        "A run writes one JSON object a rollout step to `metrics.jsonl`. A value that is not defined in a step is",
        "null, never 0 or NaN. Names marked * appear only when the run knows them; the others are in every record.",
        "Shares are fractions, never percent. Everything but times, memory and `evaluation_*`, which is recorded when",
        "it is graded, is bit-equal in a resumed and an",
        "unbroken run with `deterministic: true`.",
    ]
    for group, title in GROUP_TITLES.items():
        lines += ["", f"## {title}", "", "| name | unit | meaning |", "| --- | --- | --- |"]
        for name, metric in METRICS.items():
            if metric.group == group:
                star = "" if metric.contract else " *"
                meaning = metric.meaning.replace("|", "\\|")
                lines.append(f"| `{name}`{star} | {_unit(metric)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _unit(metric: Metric) -> str:
    shape = {"list": ", list with one value an update", "mapping": f", object by {metric.keys}"}.get(metric.shape, "")
    return metric.unit + shape


if __name__ == "__main__":
    print(to_markdown(), end="")
