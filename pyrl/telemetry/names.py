"""Every metric of a step: its name, unit and meaning. The recorder refuses a name that is not here.

`docs/metrics.md` is this table as a page: `python -m pyrl.telemetry.names > docs/metrics.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Shape = Literal["number", "integer", "list", "mapping"]

COVARIANCE_TOP_SHARES = (2e-4, 2e-3, 2e-2, 2e-1, 5e-1)
"""Shares of tokens, as fractions, whose mean covariance is recorded: the columns of the paper's table 1."""

PHASES = ("rollout", "reward", "score", "update", "sync", "checkpoint", "validation")
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
    reproducible: bool = True
    """Equal, to the bit, in a resumed and in an unbroken deterministic run. Times and memory are not."""


def covariance_top_name(share: float) -> str:
    """`covariance_top_2e-4` for 2e-4; `share` is one of `COVARIANCE_TOP_SHARES`."""
    if share not in COVARIANCE_TOP_SHARES:
        raise ValueError(f"share {share}: no such metric, the recorded shares are {COVARIANCE_TOP_SHARES}")
    mantissa, exponent = f"{share:.0e}".split("e")
    return f"covariance_top_{mantissa}e{int(exponent)}"


def _seconds(phase: str, meaning: str) -> tuple[str, Metric]:
    return f"seconds_{phase}", Metric("time", "s", meaning, reproducible=False)


METRICS: dict[str, Metric] = {
    # where the run is
    "step": Metric("progress", "count", "Rollout steps done, this one included; 0 is the state before training.",
                   "integer"),
    "gradient_step": Metric("progress", "count", "Optimizer updates done since the start of the run.", "integer"),
    "policy_version": Metric("progress", "version", "Version of the weights that generated this step's responses.",
                             "integer"),
    "prompts_consumed": Metric("progress", "count", "Prompts drawn from the data since the start of the run.",
                               "integer", contract=False),
    # reward
    "reward_mean": Metric("reward", "reward", "Mean over all judged completions, before filtering."),
    "reward_mean_kept": Metric("reward", "reward", "Mean over the judged completions that were trained on."),
    "reward_by_source": Metric("reward", "reward", "`reward_mean` of each data source.", "mapping", contract=False),
    "verdicts_right": Metric("reward", "count", "Completions judged right.", "integer"),
    "verdicts_wrong": Metric("reward", "count", "Completions judged wrong.", "integer"),
    "verdicts_unjudged": Metric("reward", "count", "Completions that could not be judged; left out of every reward.",
                                "integer"),
    "validation_reward_mean": Metric("reward", "reward", "Mean over the judged completions of the held-out prompts."),
    "validation_reward_by_source": Metric("reward", "reward", "`validation_reward_mean` of each data source.",
                                          "mapping", contract=False),
    "validation_n": Metric("reward", "count", "Judged completions behind `validation_reward_mean`.", "integer"),
    "validation_unjudged": Metric("reward", "count", "Held-out completions that could not be judged.", "integer",
                                  contract=False),
    # policy
    "entropy": Metric("policy", "nats", "Full-vocabulary entropy at temperature 1 under the generating policy, mean "
                      "over the response tokens that are trained on: all of the rollout batch but groups that dynamic "
                      "sampling dropped and responses without a verdict."),
    "entropy_response_mean": Metric("policy", "nats", "The same, as the mean of the responses' means (eq. 5 of "
                                    "arXiv 2505.22617)."),
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
    "selected_tokens": Metric("covariance", "tokens", "Tokens chosen by Clip-Cov or KL-Cov, sum over updates; null "
                              "for a loss that chooses none.", "integer"),
    "selected_tokens_updates": Metric("covariance", "tokens", "`selected_tokens` of each update.", "list",
                                      contract=False),
    # optimization
    "loss": Metric("optimization", "nats", "Policy loss with the one global token denominator, mean over updates."),
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
    # rollout batch
    "response_tokens": Metric("rollout", "tokens", "Response tokens generated in this step, in kept and in "
                              "dropped groups.", "integer"),
    "response_length_mean": Metric("rollout", "tokens", "Response length, the stop token included, mean."),
    "response_length_max": Metric("rollout", "tokens", "Response length, maximum.", "integer"),
    "truncated_fraction": Metric("rollout", "fraction", "Completions that reached the token limit without a stop."),
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
        _seconds("sync", "Sending the new weights to the rollout engines."),
        _seconds("checkpoint", "Writing a checkpoint."),
        _seconds("validation", "Generating and grading held-out prompts."),
    ]),
    "tokens_per_second": Metric("time", "tokens/s", "`response_tokens` / `seconds_step`.", reproducible=False),
    "memory_learner_bytes": Metric("memory", "bytes", "Peak memory of rank 0: resident set on CPU, "
                                   "allocated device memory on CUDA.", "integer", reproducible=False),
}  # fmt: skip

GROUP_TITLES = {
    "progress": "Progress",
    "reward": "Reward",
    "policy": "Policy",
    "covariance": "Covariance and selection",
    "optimization": "Optimization",
    "rollout": "Rollout batch",
    "time": "Time",
    "memory": "Memory",
}


def reproducible_names() -> tuple[str, ...]:
    """Metrics that a resumed deterministic run repeats to the bit: all but times and memory."""
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
        "Shares are fractions, never percent. Everything but times and memory is bit-equal in a resumed and an",
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
    shape = {"list": ", list with one value an update", "mapping": ", object by source"}.get(metric.shape, "")
    return metric.unit + shape


if __name__ == "__main__":
    print(to_markdown(), end="")
