"""Charts of `pyrl analyze`: reward over entropy with the fitted laws, early prediction, dynamics, model size."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from pyrl.analysis.analyze import Analysis, RunAnalysis
from pyrl.analysis.entropy_dynamics import PREDICTORS, Dynamics, measured_pairs
from pyrl.analysis.plots import (
    INK,
    MUTED,
    RUN_COLOURS,
    STYLE,
    draw_raw,
    figure_svg,
    legend_columns,
    run_dash,
    run_handles,
    smooth,
    smoothing_window,
    tick_label,
)

CURVE_POINTS = 120
COLUMNS_OF_THE_SHEET = 3
SHEET_INCHES, LEGEND_SIZE = 14.0, 11.5
TITLE_CHARACTERS = 36
"""What fits above a chart of the sheet; a longer title is set smaller."""


@dataclass(frozen=True, slots=True)
class LawChart:
    """A chart that knows how to draw itself."""

    title: str
    caption: str
    draw: Callable[[Axes], None]

    def svg(self) -> str:
        with mpl.rc_context(STYLE | {"font.size": 11, "svg.hashsalt": self.title}):
            figure = Figure(figsize=(4.7, 3.1), layout="constrained")
            self.draw(figure.subplots())
            return figure_svg(figure, html.escape(self.title))


def write_sheet(charts: Sequence[LawChart], labels: Sequence[str], path: Path) -> None:
    """Every chart on one PNG, under a legend of the runs that `labels` names."""
    rows = -(-len(charts) // COLUMNS_OF_THE_SHEET)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(SHEET_INCHES, 0.9 + 3.6 * rows), layout="constrained", facecolor="white")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
        columns = legend_columns(labels, inches=SHEET_INCHES, size=LEGEND_SIZE)
        figure.legend(handles=run_handles(labels), loc="outside upper left", frameon=False, ncols=columns,
                      fontsize=LEGEND_SIZE)  # fmt: skip
        grid = figure.subplots(rows, COLUMNS_OF_THE_SHEET, squeeze=False).ravel()
        for axes, chart in zip(grid, charts, strict=False):
            chart.draw(axes)
            size = mpl.rcParams["axes.titlesize"] * min(1.0, TITLE_CHARACTERS / len(chart.title))
            axes.set_title(chart.title, loc="left", pad=8, fontsize=size)
        for axes in grid[len(charts) :]:
            axes.set_axis_off()
        temporary = path.with_name(path.name + ".tmp")
        figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(path)


def law_charts(analysis: Analysis) -> list[LawChart]:
    """The charts that this analysis has something for, in reading order."""
    runs, numbers = analysis.runs, {id(run): i for i, run in enumerate(analysis.runs)}
    shared = " Broken: one law for all runs." if analysis.one_law else ""
    charts = [
        LawChart("Reward over entropy", "Dots: steps. Lines: R = -a exp(H) + b, drawn on to its ceiling at zero "
                 f"entropy; shade: 95% confidence.{shared}", lambda axes: draw_laws(axes, analysis)),
        LawChart("Policy entropy", "Nats a token, as the log has it, over steps.",
                 lambda axes: draw_entropy(axes, runs)),
    ]  # fmt: skip
    for run in analysis.fitted:
        if run.early is not None:
            charts.append(_early_chart(run, numbers[id(run)]))
    if analysis.size_trends:
        charts.append(LawChart("Coefficients over model size", "a (circles) and b (squares) over parameters; lines: "
                               "log-linear fit.", lambda axes: draw_sizes(axes, analysis)))  # fmt: skip
    for run in runs:
        for fit in run.dynamics:
            charts += _dynamics_charts(run, fit, numbers[id(run)])
    return charts


def draw_laws(axes: Axes, analysis: Analysis) -> None:
    """Every run's pairs and law over entropy, and the law they share."""
    for number, run in enumerate(analysis.runs):
        colour, (entropy, reward) = _colour(number), run.pairs
        axes.plot(entropy, reward, linestyle="", marker=".", markersize=4, markeredgewidth=0, color=colour, alpha=0.3,
                  zorder=2)  # fmt: skip
        if run.law is not None:
            grid = np.linspace(0.0, max(run.law.entropy_range), CURVE_POINTS)
            band = run.law.confidence_band(grid)
            axes.fill_between(grid, band.low, band.high, color=colour, alpha=0.16, linewidth=0, zorder=1)
            axes.plot(grid, band.reward, color=colour, linestyle=run_dash(number), linewidth=1.9, zorder=4)
    if analysis.one_law:
        top = max(max(run.law.entropy_range) for run in analysis.fitted)
        grid = np.linspace(0.0, top, CURVE_POINTS)
        shared = analysis.one_law.b - analysis.one_law.a * np.exp(grid)
        axes.plot(grid, shared, color=INK, linestyle=(0, (5, 3)), linewidth=1.6, zorder=5)
    finish(axes, "entropy, nats a token", "reward")


def draw_entropy(axes: Axes, runs: Sequence[RunAnalysis]) -> None:
    for number, run in enumerate(runs):
        _series(axes, run.curve.steps, run.curve.entropy, number)
    axes.set_ylim(bottom=0.0)
    finish(axes, "step", "nats a token")


def draw_early(axes: Axes, run: RunAnalysis, number: int) -> None:
    """Measured reward, and what the law of the first steps says of the others by their entropy."""
    curve, early = run.curve, run.early
    kept = np.isfinite(curve.entropy) & np.isfinite(curve.reward)
    steps, entropy = curve.steps[kept], curve.entropy[kept]
    _series(axes, steps, curve.reward[kept], number)
    band = early.predict(entropy)
    window = smoothing_window(steps.size)
    low, high = smooth(band.low, window), smooth(band.high, window)
    axes.fill_between(steps, low, high, color=INK, alpha=0.1, linewidth=0, zorder=1)
    axes.plot(steps, smooth(band.reward, window), color=INK, linestyle=(0, (5, 3)), linewidth=1.6, zorder=5)
    axes.axvline(early.last_fit_step, color=MUTED, linewidth=1.0, linestyle=":", zorder=3)
    finish(axes, "step", "reward")


def draw_sizes(axes: Axes, analysis: Analysis) -> None:
    sized = [(run.parameters, run.law) for run in analysis.fitted if run.parameters is not None]
    parameters = np.array([size for size, _ in sized])
    grid = np.geomspace(parameters.min(), parameters.max(), 50)
    for number, (name, trend) in enumerate(analysis.size_trends.items()):
        values = [getattr(law, name) for _, law in sized]
        half = [(high - low) / 2 for low, high in (law.interval(name) for _, law in sized)]
        axes.errorbar(parameters, values, yerr=half, color=_colour(number), linestyle="", marker="os"[number],
                      markersize=6, elinewidth=1.2, zorder=4)  # fmt: skip
        axes.plot(grid, trend.predict(grid), color=_colour(number), linewidth=1.6, zorder=3)
    axes.set_xscale("log")
    axes.set_xticks(np.unique(parameters), [_size_label(p) for p in np.unique(parameters)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("parameters")
    axes.set_ylabel("a, b")
    axes.yaxis.set_major_formatter(FuncFormatter(tick_label))


def draw_dynamics_scatter(axes: Axes, run: RunAnalysis, fit: Dynamics, number: int) -> None:
    """-dH over the covariance, with the line through the origin."""
    _, covariance, change = measured_pairs(run.curve.rows, fit.predictor)
    axes.plot(covariance, -change, linestyle="", marker=".", markersize=4, markeredgewidth=0, color=_colour(number),
              alpha=0.4, zorder=2)  # fmt: skip
    ends = np.array([min(0.0, covariance.min()), max(0.0, covariance.max())])
    axes.plot(ends, fit.slope * ends, color=INK, linestyle=(0, (5, 3)), linewidth=1.6, zorder=4)
    axes.axhline(0.0, color=MUTED, linewidth=0.8)
    finish(axes, PREDICTORS[fit.predictor], "-dH, nats a step")


def draw_dynamics_time(axes: Axes, run: RunAnalysis, fit: Dynamics, number: int) -> None:
    """-dH as measured and as slope times covariance, running means over steps."""
    steps, covariance, change = measured_pairs(run.curve.rows, fit.predictor)
    _series(axes, steps, -change, number)
    predicted = smooth(fit.slope * covariance, smoothing_window(steps.size))
    axes.plot(steps, predicted, color=INK, linestyle=(0, (5, 3)), linewidth=1.6, zorder=5)
    axes.axhline(0.0, color=MUTED, linewidth=0.8)
    finish(axes, "step", "-dH, nats a step")


def _early_chart(run: RunAnalysis, number: int) -> LawChart:
    caption = (f"Law of the first {run.early.n_fit} steps (left of the dotted line), applied to the entropy of all. "
               "Broken: predicted; shade: 95% band for a step; coloured: measured.")  # fmt: skip
    return LawChart(f"Early prediction, {run.label}", caption, lambda axes: draw_early(axes, run, number))


def _dynamics_charts(run: RunAnalysis, fit: Dynamics, number: int) -> list[LawChart]:
    name = f"{PREDICTORS[fit.predictor]}, {run.label}"
    return [
        LawChart(f"-dH over {name}", f"A dot a step; broken: slope {fit.slope:.3g} through the origin.",
                 lambda axes: draw_dynamics_scatter(axes, run, fit, number)),
        LawChart(f"-dH and {name}", "Coloured: measured; broken: slope times covariance. Running means.",
                 lambda axes: draw_dynamics_time(axes, run, fit, number)),
    ]  # fmt: skip


def _series(axes: Axes, steps: np.ndarray, values: np.ndarray, number: int) -> None:
    kept = np.isfinite(values)
    steps, values = steps[kept], values[kept]
    draw_raw(axes, steps, values, _colour(number))
    axes.plot(steps, smooth(values, smoothing_window(values.size)), color=_colour(number), linestyle=run_dash(number),
              linewidth=1.9, zorder=4)  # fmt: skip


def finish(axes: Axes, x: str, y: str) -> None:
    """Labels and ticks of linear axes."""
    axes.margins(x=0.02)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(tick_label))


def _colour(number: int) -> str:
    return RUN_COLOURS[number % len(RUN_COLOURS)]


def _size_label(parameters: float) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{name}"
    return f"{parameters:.0f}"
