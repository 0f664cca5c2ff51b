"""What the runs of a study say, as numbers. Reads run folders alone.

The start of a run is the mean of its first 5 steps, its end that of the last tenth. An interval over seeds is
Student's, 95%, with a run as one observation; against the baseline runs of equal seed are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from pyrl.analysis.analyze import Analysis, Options, analyze
from pyrl.analysis.entropy_dynamics import correlation
from pyrl.analysis.entropy_law import MINIMUM_PAIRS, linear_fit
from pyrl.analysis.records import START_STEPS, RunRecords, load_run
from pyrl.evaluation.held_out import pass_at_k_curve
from pyrl.study.config import Arm, PlannedRun, StudyConfig
from pyrl.study.reached import Reached, reached
from pyrl.telemetry.names import DIFFICULTY_BINS

END_SHARE = 0.1
COLLAPSE_SHARES = {"1/12": 1 / 12, "1/3": 1 / 3}
"""Of a run's steps: where the paper reads its section 2.3 (73% and 94% of the entropy consumed)."""
AROUND = 10
"""Steps on each side whose mean is the value at a step."""
FLAT_STEPS = 200


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over `n` observations and its 95% confidence interval; no interval of one observation."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Collapse:
    """Of one run: where entropy goes and what it buys (arXiv 2505.22617, section 2.3)."""

    run: str
    entropy_start: float
    entropy_end: float
    reward_start: float
    reward_end: float
    entropy_consumed: dict[str, float | None]
    """By share of the steps: (start - entropy there) / (start - end). None where start and end are equal."""
    gain_reached: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Flatness:
    """Slope of the reward over a run's last steps, with an error that allows for dependent steps."""

    run: str
    steps: int
    slope_per_100_steps: float | None
    """None, as the next two, with too few steps for an error."""
    standard_error: float | None
    flat: bool | None
    """|slope| within 1.96 standard errors."""


@dataclass(slots=True)
class ArmResult:
    """All runs of one arm."""

    arm: str
    seeds: tuple[int, ...]
    entropy: Interval
    """At the end; so are the next two."""
    reward: Interval
    held_out: Interval | None
    selected_tokens: float | None
    """A step, mean over all steps and runs."""
    entropy_ratio: Interval | None
    """To the baseline's: geometric mean of the pairs' ratios."""
    reward_difference: Interval | None
    held_out_difference: Interval | None
    entropy_ratio_at_reward: Interval | None
    """Where each is first at the reward that the baseline ends with: geometric mean over the runs that get there."""
    pass_at_k: dict[int, Interval] = field(default_factory=dict)
    """On the held-out questions after the last step, a run being one observation."""
    pass_difference: dict[int, Interval] = field(default_factory=dict)
    """To the baseline's, paired by seed."""


@dataclass(frozen=True, slots=True)
class CauseByDifficulty:
    """Of the measured steps of one arm, for prompts of one accuracy (the paper's figure 8)."""

    arm: str
    difficulty: str
    steps: int
    entropy_change: float
    """Mean, nats a step."""
    covariance: float
    """Mean of `cov_token_logp_adv`."""
    correlation: float | None
    """Of the two over steps, the change's sign turned."""


@dataclass(frozen=True, slots=True)
class SteeringPoint:
    """One value of a swept setting."""

    arm: str
    setting: str
    value: Any
    entropy: Interval
    reward: Interval
    selected_tokens: float | None
    """A step, mean over all steps and runs."""


@dataclass(slots=True)
class Findings:
    study: StudyConfig
    baseline: str
    done: list[PlannedRun]
    missing: list[PlannedRun]
    collapse: list[Collapse]
    flatness: list[Flatness]
    reached: list[Reached]
    law: Analysis | None
    arms: list[ArmResult]
    causes: list[CauseByDifficulty]
    steering: list[SteeringPoint]


def find(study: StudyConfig, done: list[PlannedRun], missing: list[PlannedRun]) -> Findings:
    """Everything, of the runs that are done (at least one)."""
    records = {run.title: load_run(run.folder, run.title) for run in done}
    by_arm: dict[Arm, list[PlannedRun]] = {}
    for run in done:
        by_arm.setdefault(run.arm, []).append(run)
    baseline = study.baseline or next(iter(study.arms))
    of_baseline = {run.seed: records[run.title] for run in done if run.arm.name == baseline}
    arms = [
        _arm_result(arm, runs, records, {} if arm.name == baseline else of_baseline) for arm, runs in by_arm.items()
    ]
    _compare_pass_at_k(arms, by_arm, baseline)
    asked = study.one_law or tuple(study.arms)
    of_law = [run for run in done if run.arm.method in asked and run.arm.swept is None]
    steering = [
        SteeringPoint(arm.method, *arm.swept, result.entropy, result.reward, result.selected_tokens)
        for arm, result in zip(by_arm, arms, strict=True)
        if arm.swept is not None
    ]
    return Findings(
        study=study,
        baseline=baseline,
        done=done,
        missing=missing,
        collapse=[_collapse(run) for run in of_baseline.values()],
        flatness=[flatness(records[run.title]) for run in done],
        reached=[
            reached(records[run.title], of_baseline[run.seed])
            for run in done
            if run.arm.name != baseline and run.seed in of_baseline
        ],
        law=_law(of_law),
        arms=arms,
        causes=[cause for arm, runs in by_arm.items() for cause in _causes(arm, [records[r.title] for r in runs])],
        steering=steering,
    )


def seed_interval(values: Iterable[float]) -> Interval:
    """Mean and Student's 95% interval; at least one value."""
    found = np.array(list(values), dtype=np.float64)
    mean = float(found.mean())
    if found.size < 2:
        return Interval(mean, None, None, found.size)
    half = float(stats.t.ppf(0.975, found.size - 1) * found.std(ddof=1) / np.sqrt(found.size))
    return Interval(mean, mean - half, mean + half, found.size)


def end_value(run: RunRecords, metric: str) -> float:
    """Mean over the last tenth of the steps."""
    values = run.series(metric)[1]
    return float(values[-max(1, round(END_SHARE * values.size)) :].mean())


def _arm_result(
    arm: Arm, runs: list[PlannedRun], records: dict[str, RunRecords], baseline: dict[int, RunRecords]
) -> ArmResult:
    """`baseline`: its records by seed, which the arm's runs are compared with."""
    own = [records[run.title] for run in runs]
    pairs = [(records[r.title], baseline[r.seed]) for r in runs if r.seed in baseline]
    validated = all(run.series("validation_reward_mean")[1].size for run in own)

    def held_out(run: RunRecords) -> float:
        return float(run.series("validation_reward_mean")[1][-1])

    def paired(difference: Callable[[RunRecords, RunRecords], float]) -> Interval | None:
        return seed_interval(difference(run, other) for run, other in pairs) if pairs else None

    ratio = paired(lambda run, other: float(np.log(end_value(run, "entropy") / end_value(other, "entropy"))))
    selected = [value for run in own for value in run.series("selected_tokens")[1]]
    return ArmResult(
        arm=arm.name,
        seeds=tuple(run.seed for run in runs),
        entropy=seed_interval(end_value(run, "entropy") for run in own),
        reward=seed_interval(end_value(run, "reward_mean") for run in own),
        held_out=seed_interval(held_out(run) for run in own) if validated else None,
        selected_tokens=float(np.mean(selected)) if selected else None,
        entropy_ratio=ratio and _exponential(ratio),
        reward_difference=paired(lambda run, other: end_value(run, "reward_mean") - end_value(other, "reward_mean")),
        held_out_difference=paired(lambda run, other: held_out(run) - held_out(other)) if validated else None,
        entropy_ratio_at_reward=_ratio_at_reward(pairs),
    )


def _ratio_at_reward(pairs: list[tuple[RunRecords, RunRecords]]) -> Interval | None:
    found = [reached(run, other).entropy_ratio for run, other in pairs]
    logarithms = [float(np.log(ratio)) for ratio in found if ratio is not None]
    return _exponential(seed_interval(logarithms)) if logarithms else None


def _exponential(interval: Interval) -> Interval:
    low, high = (None if bound is None else float(np.exp(bound)) for bound in (interval.low, interval.high))
    return Interval(float(np.exp(interval.mean)), low, high, interval.n)


def _compare_pass_at_k(results: list[ArmResult], by_arm: dict[Arm, list[PlannedRun]], baseline: str) -> None:
    """Fill in pass@k of every arm, and its difference to the baseline's by seed."""
    curves = {arm.name: {run.seed: pass_at_k_curve(run.folder) for run in runs} for arm, runs in by_arm.items()}
    other = curves.get(baseline, {})
    for result in results:
        own = curves[result.arm]
        result.pass_at_k = _over_seeds(own)
        if result.arm != baseline:
            pairs = {seed: (own[seed], other[seed]) for seed in own.keys() & other.keys()}
            result.pass_difference = _over_seeds(
                {seed: {k: one[k] - two[k] for k in one.keys() & two.keys()} for seed, (one, two) in pairs.items()}
            )


def _over_seeds(curves: dict[int, dict[int, float]]) -> dict[int, Interval]:
    """For each k that the curves of all seeds have."""
    shared = set.intersection(*(set(curve) for curve in curves.values())) if curves else set()
    return {k: seed_interval(curve[k] for curve in curves.values()) for k in sorted(shared)}


def _collapse(run: RunRecords) -> Collapse:
    values = {}
    for name in ("entropy", "reward_mean"):
        start, end = run.start(name, START_STEPS), end_value(run, name)
        series = run.series(name)[1]
        reached = {
            label: None if start == end else (start - _around(series, share)) / (start - end)
            for label, share in COLLAPSE_SHARES.items()
        }
        values[name] = start, end, reached
    (h0, h1, consumed), (r0, r1, gained) = values["entropy"], values["reward_mean"]
    return Collapse(run.label, h0, h1, r0, r1, consumed, gained)


def _around(series: np.ndarray, share: float) -> float:
    place = round(share * series.size)
    return float(series[max(0, place - AROUND) : place + AROUND].mean())


def flatness(run: RunRecords) -> Flatness:
    """Of the last `FLAT_STEPS` steps."""
    values = run.series("reward_mean")[1][-FLAT_STEPS:]
    if values.size < MINIMUM_PAIRS:
        return Flatness(run.label, values.size, None, None, None)
    hundreds = np.arange(values.size) / 100
    fit = linear_fit(np.column_stack([np.ones_like(hundreds), hundreds]), values)
    slope, error = float(fit.coefficients[1]), float(np.sqrt(fit.covariance[1, 1]))
    return Flatness(run.label, values.size, slope, error, abs(slope) <= 1.96 * error)


def _law(runs: Sequence[PlannedRun]) -> Analysis | None:
    if not runs:
        return None
    options = Options(labels=tuple(r.title for r in runs), groups=tuple(r.arm.name for r in runs))
    return analyze([run.folder for run in runs], options)


def _causes(arm: Arm, runs: list[RunRecords]) -> list[CauseByDifficulty]:
    """For each accuracy of prompts that the measured steps have."""
    found = []
    for difficulty in DIFFICULTY_BINS:
        pairs = [
            (change[difficulty], covariance[difficulty])
            for run in runs
            for row in run.rows
            if (change := row.get("entropy_change_by_difficulty")) and difficulty in change
            and (covariance := row.get("cov_token_logp_adv_by_difficulty")) and difficulty in covariance
        ]  # fmt: skip
        if pairs:
            change, covariance = np.array(pairs).T
            means = float(change.mean()), float(covariance.mean())
            found.append(CauseByDifficulty(arm.name, difficulty, len(pairs), *means, correlation(covariance, -change)))
    return found
