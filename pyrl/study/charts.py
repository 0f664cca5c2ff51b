"""Charts of a study: arms over steps, the law, pass@k, what difficulty does, steering."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pyrl.analysis.law_plots import LawChart, finish
from pyrl.analysis.plots import INK, RUN_COLOURS, run_dash, smooth, smoothing_window, tick_label
from pyrl.analysis.records import RunRecords, load_run
from pyrl.study.findings import Findings, Interval, SteeringPoint
from pyrl.telemetry.names import DIFFICULTY_BINS

DECADES = 50.0
"""Ratio of the largest to the smallest swept value from which their axis is logarithmic."""


def study_charts(findings: Findings) -> list[LawChart]:
    """The charts that the study has something for, in reading order."""
    charts = [
        LawChart("Policy entropy", "Nats a token, running means. Thin: runs; thick: mean of an arm's runs.",
                 lambda axes: _over_steps(axes, findings, "entropy", "nats a token", logarithmic=True)),
        LawChart("Reward", "Training prompts, running means.",
                 lambda axes: _over_steps(axes, findings, "reward_mean", "reward")),
    ]  # fmt: skip
    if findings.law is not None and findings.law.fitted:
        charts.append(LawChart("Reward over entropy", "Dots: steps. Lines: each run's R = -a exp(H) + b.",
                               lambda axes: _laws(axes, findings)))  # fmt: skip
    if any(arm.pass_at_k for arm in findings.arms):
        charts.append(LawChart("pass@k, held out", "Unbiased, after the last step. Shade: 95% over seeds.",
                               lambda axes: _pass_at_k(axes, findings)))  # fmt: skip
    if findings.causes:
        charts.append(LawChart("Covariance by difficulty", "Cov(log pi, A) of tokens, mean over the measured steps, "
                               "by the accuracy of the prompt's group.",
                               lambda axes: _by_difficulty(axes, findings, "covariance", "nats")))  # fmt: skip
        charts.append(LawChart("Entropy change by difficulty", "Measured -dH a step, on the same tokens.",
                               lambda axes: _by_difficulty(axes, findings, "entropy_change", "-dH, nats a step")))
    return charts + steering_charts(findings.steering)


def steering_charts(points: list[SteeringPoint]) -> list[LawChart]:
    """For each swept setting the entropy at the end, and the selected tokens of the methods that select."""
    charts = []
    for setting in dict.fromkeys(point.setting for point in points):
        own = [point for point in points if point.setting == setting]
        charts.append(_steering_chart(setting, own))
        selecting = [point for point in own if point.selected_tokens is not None]
        if selecting:
            charts.append(_selected_chart(setting, selecting))
    return charts


def _steering_chart(setting: str, points: list[SteeringPoint]) -> LawChart:
    return LawChart(f"Entropy over {setting.rpartition('.')[2]}", "At the end. Bars: 95% over seeds, where "
                    "there are several.", lambda axes: _steering(axes, setting, points))  # fmt: skip


def _selected_chart(setting: str, points: list[SteeringPoint]) -> LawChart:
    return LawChart(f"Selected over {setting.rpartition('.')[2]}", "Tokens a step, mean over the steps.",
                    lambda axes: _selected(axes, setting, points))  # fmt: skip


def _over_steps(axes: Axes, findings: Findings, metric: str, unit: str, *, logarithmic: bool = False) -> None:
    for number, runs in enumerate(_runs_by_arm(findings).values()):
        series = [run.series(metric) for run in runs]
        curves = [(steps, smooth(values, smoothing_window(values.size))) for steps, values in series]
        for steps, values in curves if len(curves) > 1 else []:
            axes.plot(steps, values, color=_colour(number), linewidth=0.7, alpha=0.45, zorder=2)
        length = min(values.size for _, values in curves)
        mean = np.mean([values[:length] for _, values in curves], axis=0)
        axes.plot(curves[0][0][:length], mean, color=_colour(number), linestyle=run_dash(number), linewidth=2, zorder=4)
    finish(axes, "step", unit)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(tick_label))
        axes.yaxis.set_minor_locator(NullLocator())


def _laws(axes: Axes, findings: Findings) -> None:
    numbers = {arm.arm: i for i, arm in enumerate(findings.arms)}
    for run in findings.law.runs:
        number, (entropy, reward) = numbers[run.group], run.pairs
        colour = _colour(number)
        axes.plot(entropy, reward, linestyle="", marker=".", markersize=3, markeredgewidth=0, color=colour, alpha=0.2,
                  zorder=2)  # fmt: skip
        if run.law is not None:
            grid = np.linspace(0.0, max(run.law.entropy_range), 60)
            axes.plot(grid, run.law.predict(grid), color=colour, linestyle=run_dash(number), linewidth=1.3, zorder=4)
    finish(axes, "entropy, nats a token", "reward")


def _pass_at_k(axes: Axes, findings: Findings) -> None:
    for number, arm in enumerate(findings.arms):
        if not arm.pass_at_k:
            continue
        ks, intervals = list(arm.pass_at_k), list(arm.pass_at_k.values())
        low, high = ([i.mean if bound is None else bound for i, bound in zip(intervals, bounds, strict=True)]
                     for bounds in ([i.low for i in intervals], [i.high for i in intervals]))  # fmt: skip
        axes.fill_between(ks, low, high, color=_colour(number), alpha=0.12, linewidth=0)
        axes.plot(ks, [i.mean for i in intervals], color=_colour(number), linestyle=run_dash(number), linewidth=1.9)
    finish(axes, "k", "pass@k")
    axes.set_xscale("log", base=2)
    ks = sorted({k for arm in findings.arms for k in arm.pass_at_k})
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.xaxis.set_minor_locator(NullLocator())


def _by_difficulty(axes: Axes, findings: Findings, what: str, unit: str) -> None:
    sign = -1 if what == "entropy_change" else 1
    for number, arm in enumerate(findings.arms):
        found = {c.difficulty: sign * getattr(c, what) for c in findings.causes if c.arm == arm.arm}
        places = [i for i, name in enumerate(DIFFICULTY_BINS) if name in found]
        axes.plot(places, [found[DIFFICULTY_BINS[i]] for i in places], color=_colour(number), marker="o", markersize=4,
                  linestyle=run_dash(number), linewidth=1.6)  # fmt: skip
    axes.axhline(0.0, color=INK, linewidth=0.7)
    finish(axes, "accuracy of the group", unit)
    axes.set_xticks(range(len(DIFFICULTY_BINS)), [name.replace("0.", ".") for name in DIFFICULTY_BINS], fontsize=8)


def _steering(axes: Axes, setting: str, points: list[SteeringPoint]) -> None:
    for number, own, places in _swept(axes, setting, points):
        errors = np.array([_half_widths(point.entropy) for point in own]).T
        axes.errorbar(places, [p.entropy.mean for p in own], yerr=errors, color=_colour(number), marker="o",
                      markersize=5, linewidth=1.6, label=own[0].arm)  # fmt: skip
    axes.legend(frameon=False, fontsize=9)
    axes.set_ylabel("nats a token")


def _selected(axes: Axes, setting: str, points: list[SteeringPoint]) -> None:
    for number, own, places in _swept(axes, setting, points):
        axes.plot(places, [p.selected_tokens for p in own], color=_colour(number), marker="o", markersize=5,
                  linewidth=1.6, label=own[0].arm)  # fmt: skip
    axes.legend(frameon=False, fontsize=9)
    axes.set_ylabel("tokens a step")


def _swept(
    axes: Axes, setting: str, points: list[SteeringPoint]
) -> Iterator[tuple[int, list[SteeringPoint], list[float]]]:
    """(number, points, places on the x axis) of each arm. Values that are all numbers have their own places,
    logarithmic where they span decades; others stand side by side in the order of the first arm that has them."""
    values: list[Any] = list(dict.fromkeys(point.value for point in points))
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if numeric and min(values) > 0 and max(values) >= DECADES * min(values):
        axes.set_xscale("log")
        axes.set_xticks(sorted(values), [tick_label(value) for value in sorted(values)])
        axes.xaxis.set_minor_locator(NullLocator())
    if not numeric:
        axes.set_xticks(range(len(values)), [str(value) for value in values])
    for number, arm in enumerate(dict.fromkeys(point.arm for point in points)):
        own = [point for point in points if point.arm == arm]
        yield number, own, [point.value if numeric else values.index(point.value) for point in own]
    axes.set_xlabel(setting)


def _half_widths(interval: Interval) -> tuple[float, float]:
    if interval.low is None:
        return 0.0, 0.0
    return interval.mean - interval.low, interval.high - interval.mean


def _runs_by_arm(findings: Findings) -> dict[str, list[RunRecords]]:
    runs: dict[str, list[RunRecords]] = {arm.arm: [] for arm in findings.arms}
    for run in findings.done:
        runs[run.arm.name].append(load_run(run.folder, run.title))
    return runs


def _colour(number: int) -> str:
    return RUN_COLOURS[number % len(RUN_COLOURS)]
