"""Charts of one or several runs, overlaid: the same drawing as a PNG and as SVG that follows the page's colours."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pyrl.analysis.records import RunRecords
from pyrl.telemetry.names import PHASES

INK, MUTED, GRID = "#1b2128", "#5b6672", "#dfe3e8"
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colour-blind-safe set; further runs repeat it with a broken line."""
THEME = {INK: "--ink", MUTED: "--muted", GRID: "--grid", **{c: f"--run-{i}" for i, c in enumerate(RUN_COLOURS)}}
"""Colours of the drawing that a page replaces by its own."""
PHASE_COLOURS = {
    "rollout": "#6fb7e6",
    "reward": "#f2b134",
    "score": "#b9a3e3",
    "update": "#2fae8a",
    "instruments": "#8fa7a0",
    "sync": "#e58f65",
    "checkpoint": "#d79bc0",
    "validation": "#c9cf5b",
    "evaluation": "#8f7bc4",
    "other": "#a9b1ba",
}
ON_PHASE = "#10151a"

RAW_POINTS_LIMIT = 1000
"""Up to here raw values are dots; beyond, dots would hide one another and swell the file, and a thin line serves."""
SMOOTHING_SHARE = 25
"""The smoothing window is about 1/25 of a run."""

POINTS_PER_INCH = 72.0
Panel = tuple[str, Callable[[Axes], None]]
"""Title, and what draws it."""
SENTENCE_CHARACTERS = 135
"""In a line under the title of a sheet."""

STYLE = {
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "axes.labelpad": 6,
    "path.simplify": False,  # would merge the strokes of `draw_raw` away
    "svg.fonttype": "none",
}


@dataclass(frozen=True, slots=True)
class Chart:
    """One pair of axes over rollout steps."""

    key: str
    title: str
    unit: str
    metric: str
    caption: str
    marks: str | None = None
    """A metric measured now and then: open circles joined by a dashed line."""
    second: str | None = None
    """A second metric in the same unit, dotted."""
    log: bool = False
    fixed_bottom: float | None = None

    def has_data(self, runs: Sequence[RunRecords]) -> bool:
        return any(run.series(self.metric)[1].size for run in runs)


CHARTS = (
    Chart("entropy", "Policy entropy", "nats a token", "entropy",
          "Full-vocabulary entropy of the generating policy, mean over response tokens.", fixed_bottom=0.0),
    Chart("reward", "Reward", "mean reward", "reward_mean",
          "All judged completions of a step before filtering. Circles: held-out prompts.",
          marks="validation_reward_mean", fixed_bottom=0.0),
    Chart("covariance", "Covariance", "nats", "covariance_mean",
          "Of log-prob and advantage, mean over valid tokens. Where it is positive, entropy falls."),
    Chart("selected", "Selected tokens", "tokens a step", "selected_tokens",
          "Tokens that Clip-Cov or KL-Cov acted on, sum over the step's updates.", fixed_bottom=0.0),
    Chart("gap", "Rollout-learner gap", "nats (log-prob)", "logprob_gap_mean",
          "Of a token's log-prob under the same weights. Solid: mean. Dotted: 99th percentile.",
          second="logprob_gap_p99", log=True),
    Chart("length", "Response length", "tokens", "response_length_mean",
          "Mean over the step's completions, the stop token included.", fixed_bottom=0.0),
    Chart("grad_norm", "Gradient norm", "L2 norm", "grad_norm",
          "Global gradient before clipping, mean over the step's updates.", fixed_bottom=0.0),
    Chart("clip_fraction", "Clipped tokens", "fraction", "clip_fraction",
          "Valid tokens whose PPO clip binds, mean over the step's updates.", fixed_bottom=0.0),
)  # fmt: skip


PASS_AT_K_TITLE = "pass@k, held-out prompts"
PASS_AT_K_CAPTION = "Unbiased, after the last step: the chance that one of k samples is right, mean over the prompts."


def charts_with_data(runs: Sequence[RunRecords]) -> list[Chart]:
    """The charts for which at least one run has values."""
    return [chart for chart in CHARTS if chart.has_data(runs)]


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred running mean, float64 [n] -> [n]; `window` is odd and shrinks to what exists at the ends."""
    half = window // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(values.size)
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, values.size)
    return (total[high] - total[low]) / (high - low)


def smoothing_window(n: int) -> int:
    """Odd number of steps, about n / 25, at least 1."""
    return 2 * (n // (2 * SMOOTHING_SHARE)) + 1


def draw_chart(axes: Axes, chart: Chart, runs: Sequence[RunRecords]) -> None:
    """Every run's raw values and their running mean."""
    positive = True
    for number, run in enumerate(runs):
        colour = RUN_COLOURS[number % len(RUN_COLOURS)]
        steps, values = run.series(chart.metric)
        draw_raw(axes, steps, values, colour)
        window = smoothing_window(values.size)
        axes.plot(steps, smooth(values, window), color=colour, linestyle=run_dash(number), linewidth=1.9, zorder=4)
        if chart.second:
            steps, values = run.series(chart.second)
            axes.plot(steps, smooth(values, window), color=colour, linestyle=":", linewidth=1.6, zorder=3)
        if chart.marks:
            steps, marks = run.series(chart.marks)
            axes.plot(steps, marks, color=colour, linestyle=(0, (4, 2)), linewidth=1.1, marker="o", markersize=4.5,
                      markerfacecolor="none", markeredgewidth=1.4, zorder=5)  # fmt: skip
        positive = positive and bool((run.series(chart.metric)[1] > 0).all())
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if chart.log and positive:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(tick_label))
    if chart.fixed_bottom is not None:
        axes.set_ylim(bottom=chart.fixed_bottom)
    axes.set_xlabel("rollout step")
    axes.set_ylabel(chart.unit)


def draw_pass_at_k(axes: Axes, runs: Sequence[RunRecords], curves: Mapping[str, Mapping[int, float]]) -> None:
    """`curves`: label of a run -> k -> pass@k."""
    for number, run in enumerate(runs):
        curve = curves.get(run.label, {})
        axes.plot(list(curve), list(curve.values()), color=RUN_COLOURS[number % len(RUN_COLOURS)], marker="o",
                  markersize=4.5, linestyle=run_dash(number), linewidth=1.9)  # fmt: skip
    axes.set_xscale("log", base=2)
    ks = sorted({k for curve in curves.values() for k in curve})
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(tick_label))
    axes.set_xlabel("k")
    axes.set_ylabel("pass@k")


def pass_at_k_svg(runs: Sequence[RunRecords], curves: Mapping[str, Mapping[int, float]]) -> str:
    """As `chart_svg`."""
    with mpl.rc_context(STYLE | {"font.size": 11, "svg.hashsalt": "pyrl-pass-at-k"}):
        figure = Figure(figsize=(4.7, 2.9), layout="constrained")
        draw_pass_at_k(figure.subplots(), runs, curves)
        return figure_svg(figure, PASS_AT_K_TITLE)


def phase_seconds(run: RunRecords) -> dict[str, float]:
    """Phase -> mean seconds a step, `other` being the rest of the step; empty without `seconds_step`.

    Step 0, the validation before training, is no training step and left out.
    """
    timed = [row for row in run.rows if row["step"] > 0 and row.get("seconds_step") is not None]
    if not timed:
        return {}
    seconds = {p: sum(row.get(f"seconds_{p}") or 0.0 for row in timed) / len(timed) for p in PHASES}
    whole = sum(row["seconds_step"] for row in timed) / len(timed)
    return {p: s for p, s in seconds.items() if s > 0} | {"other": max(0.0, whole - sum(seconds.values()))}


def draw_phases(axes: Axes, runs: Sequence[RunRecords]) -> None:
    """One bar a run, its step split into phases."""
    times = [phase_seconds(run) for run in runs]
    longest = max(sum(t.values()) for t in times)
    for row, phases in enumerate(times):
        left = 0.0
        for phase, seconds in phases.items():
            axes.barh(row, seconds, left=left, height=0.62, color=PHASE_COLOURS[phase], zorder=3)
            if seconds > 0.055 * longest:
                axes.text(left + seconds / 2, row, f"{seconds:.2g}", ha="center", va="center", color=ON_PHASE,
                          fontsize=9, zorder=5)  # fmt: skip
            left += seconds
    used = [phase for phase in PHASE_COLOURS if any(phase in t for t in times)]
    axes.legend(
        handles=[Patch(color=PHASE_COLOURS[phase], label=phase) for phase in used], loc="lower left", frameon=False,
        bbox_to_anchor=(0, 1.0), borderaxespad=0.2, ncols=len(used), fontsize=9, handlelength=0.9, handleheight=0.9,
        handletextpad=0.4, columnspacing=1.1, borderpad=0.1,
    )  # fmt: skip
    axes.set_yticks(range(len(runs)), [run.label for run in runs])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, longest * 1.01)
    axes.set_xlabel("seconds a step, mean")


def chart_svg(chart: Chart, runs: Sequence[RunRecords]) -> str:
    """`<svg>` for inlining in HTML: no title, no reference outside itself, colours as CSS variables (`THEME`)."""
    with mpl.rc_context(STYLE | {"font.size": 11, "svg.hashsalt": f"pyrl-{chart.key}"}):
        figure = Figure(figsize=(4.7, 2.9), layout="constrained")
        draw_chart(figure.subplots(), chart, runs)
        return figure_svg(figure, f"{chart.title}, {chart.unit}, over rollout steps")


def write_png(
    runs: Sequence[RunRecords],
    path: Path,
    title: str,
    *,
    sentence: str = "",
    pass_at_k: Mapping[str, Mapping[int, float]] | None = None,
) -> None:
    """Every chart on one sheet: entropy, reward and, where there is one, pass@k on top, the others three a row, phase
    times at the foot. `sentence` stands under the title."""
    panels: list[Panel] = [
        (chart.title, partial(draw_chart, chart=chart, runs=runs)) for chart in charts_with_data(runs)
    ]
    top, others = panels[:2], panels[2:]
    if pass_at_k:
        top.append((PASS_AT_K_TITLE, partial(draw_pass_at_k, runs=runs, curves=pass_at_k)))
    rows = [top, *(others[i : i + 3] for i in range(0, len(others), 3))]
    timed = any(phase_seconds(run) for run in runs)
    lines = textwrap.wrap(sentence, SENTENCE_CHARACTERS)
    heights = [0.75 + 0.27 * len(lines), 3.7, *[2.7] * (len(rows) - 1), *([1.25 + 0.4 * len(runs)] if timed else [])]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.5, sum(heights)), layout="constrained", facecolor="white")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
        grid = figure.add_gridspec(len(heights), 6, height_ratios=heights)
        _heading(figure.add_subplot(grid[0, :]), runs, title, lines)
        for number, row in enumerate(rows):
            width = 6 // max(2, len(top)) if number == 0 else 2
            for column, (heading, draw) in enumerate(row):
                axes = figure.add_subplot(grid[number + 1, column * width : (column + 1) * width])
                draw(axes)
                axes.set_title(heading, loc="left", pad=8)
        if timed:
            axes = figure.add_subplot(grid[-1, :])
            draw_phases(axes, runs)
            axes.set_title("Time of a step", loc="left", pad=24)
        temporary = path.with_name(path.name + ".tmp")
        figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)


def _heading(axes: Axes, runs: Sequence[RunRecords], title: str, lines: Sequence[str]) -> None:
    axes.set_axis_off()
    below = axes.annotate(title, (0, 1), xycoords="axes fraction", fontsize=17, fontweight="bold", va="top")
    for line in lines:
        below = axes.annotate(line, (0, -0.35), xycoords=below, fontsize=12, va="top", color=INK)
    handles = run_handles([run.label for run in runs])
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, -0.15), frameon=False,
                ncols=6, fontsize=11.5, handlelength=1.6, columnspacing=1.8, borderaxespad=0, borderpad=0)  # fmt: skip
    window = smoothing_window(max(len(run.rows) for run in runs))
    axes.text(1, -0.1, f"dots: each step, lines: running mean of {window} steps", color=MUTED, fontsize=9.5,
              ha="right", va="bottom", transform=axes.transAxes)  # fmt: skip


def run_dash(number: int) -> str:
    """Line style of a run, as matplotlib and CSS call it: another one once the colours repeat."""
    return ("solid", "dashed", "dotted")[number // len(RUN_COLOURS) % 3]


def run_keys(labels: Sequence[str]) -> list[dict[str, object]]:
    """For the legend of a page: label, number of the colour and line style of each run."""
    return [{"label": t, "colour": i % len(RUN_COLOURS), "dash": run_dash(i)} for i, t in enumerate(labels)]


def run_handles(labels: Sequence[str]) -> list[Line2D]:
    """For the legend of a figure."""
    return [
        Line2D([], [], color=RUN_COLOURS[i % len(RUN_COLOURS)], linewidth=3, linestyle=run_dash(i), label=label)
        for i, label in enumerate(labels)
    ]


def legend_columns(labels: Sequence[str], *, inches: float, size: float) -> int:
    """As many, up to 6, as `inches` hold of the widest label in points of `size`, with matplotlib's own spacing."""
    widest = max(TextPath((0, 0), label, size=size).get_extents().width for label in labels)
    spacing = sum(mpl.rcParams[f"legend.{part}"] for part in ("handlelength", "handletextpad", "columnspacing"))
    return max(1, min(6, int(inches * POINTS_PER_INCH / (widest + spacing * size))))


def draw_raw(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str) -> None:
    """Each value as a dot, or as a thin line where there are too many."""
    if steps.size > RAW_POINTS_LIMIT:
        axes.plot(steps, values, color=colour, linewidth=0.5, alpha=0.3, zorder=2)
        return
    # Dots as one path of short round-capped strokes: a marker each would cost a hundred bytes a point in the SVG.
    gap = np.full(steps.size, np.nan)
    x = np.stack([steps, steps + 1e-4, gap], axis=1).ravel()
    y = np.stack([values, values, gap], axis=1).ravel()
    axes.plot(x, y, color=colour, linewidth=2.6, alpha=0.3, solid_capstyle="round", snap=False, zorder=2)


def tick_label(value: float, _position: int | None = None) -> str:
    """Four significant digits, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}".replace("e-0", "e-")


def _round_path(match: re.Match[str]) -> str:
    """Path coordinates to a hundredth of a point, which is below a pixel, save half of the page."""
    return re.sub(r"(\.\d{2})\d+", r"\1", match[0])


def figure_svg(figure: Figure, label: str) -> str:
    """A figure as `<svg>` for inlining in HTML; `label` is read aloud, and is attribute text already escaped."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    view_box = re.search(r'viewBox="[^"]*"', text)
    assert view_box is not None, "matplotlib writes a viewBox"
    text = f'<svg {view_box[0]} role="img" aria-label="{label}">' + text[text.index(">") + 1 :]
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # numbered from 1 in every drawing: not unique in a page
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub(r"(font: [\d.]+px) [^;\"]*", r"\1 var(--font)", text)
    text = re.sub(r' d="[^"]*"', _round_path, text)
    for colour, name in THEME.items():
        text = text.replace(colour, f"var({name})")
    return text.strip()
