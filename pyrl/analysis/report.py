"""The report of one or several runs: one self-contained HTML page and a PNG of the same charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pyrl.analysis import plots
from pyrl.analysis.records import END_STEPS, START_STEPS, RunRecords, config_differences, load_runs
from pyrl.telemetry.progress import format_duration

_COMPARED = (
    ("reward_mean", "Reward, training prompts", ""),
    ("validation_reward_mean", "Reward, held-out prompts", ""),
    ("entropy", "Entropy", "nats"),
    ("covariance_mean", "Covariance", "nats"),
    ("selected_tokens", "Selected tokens", "a step"),
    ("response_length_mean", "Response length", "tokens"),
    ("truncated_fraction", "Truncated responses", "fraction"),
    ("grad_norm", "Gradient norm", "L2"),
    ("logprob_gap_mean", "Log-prob gap", "nats"),
    ("tokens_per_second", "Throughput", "tokens/s"),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A metric at the start and at the end of every run."""

    metric: str
    label: str
    unit: str
    start: tuple[float | None, ...]
    """One a run. Mean of the first 5 recorded values; a validation metric: the first one."""
    end: tuple[float | None, ...]
    """Mean of the last 20; a validation metric: the last one."""


def compare(runs: Sequence[RunRecords]) -> list[Comparison]:
    """Start and end of every metric of the report that at least one run has."""
    rows = []
    for metric, label, unit in _COMPARED:
        first, last = (1, 1) if metric.startswith("validation_") else (START_STEPS, END_STEPS)
        start = tuple(run.start(metric, first) for run in runs)
        if any(value is not None for value in start):
            rows.append(Comparison(metric, label, unit, start, tuple(run.end(metric, last) for run in runs)))
    return rows


def write_report(
    runs: Mapping[str, Path | str],
    out_folder: Path | str,
    title: str,
    *,
    sentence: str = "",
    held_out: Sequence[Sequence[str]] = (),
    pass_at_k: Mapping[str, Mapping[int, float]] | None = None,
) -> tuple[Path, Path]:
    """Write `report.html` and `report.png` into `out_folder`; returns their paths.

    `runs`: label -> run folder, drawn in this order. `sentence`: what the report opens with. `held_out`: cells of a
    table of their own; `pass_at_k`: label -> k -> pass@k (both: `pyrl.evaluation.held_out`). The page needs no network
    and no other file. Errors: `records.load_run`.
    """
    loaded = load_runs(runs)
    out = Path(out_folder)
    out.mkdir(parents=True, exist_ok=True)
    html_path, png_path = out / "report.html", out / "report.png"
    temporary = html_path.with_name(html_path.name + ".tmp")
    curves = {label: curve for label, curve in (pass_at_k or {}).items() if curve}
    page = render_html(loaded, title, sentence=sentence, held_out=held_out, pass_at_k=curves)
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(html_path)
    plots.write_png(loaded, png_path, title, sentence=sentence, pass_at_k=curves)
    return html_path, png_path


def render_html(
    runs: Sequence[RunRecords],
    title: str,
    *,
    sentence: str,
    held_out: Sequence[Sequence[str]],
    pass_at_k: Mapping[str, Mapping[int, float]],
) -> str:
    """The page as text."""
    charts = [
        (chart.title, chart.caption, Markup(plots.chart_svg(chart, runs))) for chart in plots.charts_with_data(runs)
    ]
    if pass_at_k:
        drawing = Markup(plots.pass_at_k_svg(runs, pass_at_k))
        charts.insert(2, (plots.PASS_AT_K_TITLE, plots.PASS_AT_K_CAPTION, drawing))
    return load_template("report.html.j2").render(
        title=title,
        sentence=sentence,
        runs=plots.run_keys([run.label for run in runs]),
        charts=charts,
        phases=_phase_bars(runs),
        phase_colours=plots.PHASE_COLOURS,
        comparisons=compare(runs),
        held_out=held_out,
        facts=_facts(runs),
        differences=config_differences(list(runs)),
        shared=_shared_config(runs),
        start_steps=START_STEPS,
        end_steps=END_STEPS,
        window=plots.smoothing_window(max(len(run.rows) for run in runs)),
    )


def load_template(name: str) -> jinja2.Template:
    """A page of `templates/`, with escaping, undefined names refused, and the filter `value` for table cells."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyrl.analysis", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["value"] = format_cell
    return environment.get_template(name)


def format_cell(value: Any) -> str:
    """A table cell: None as a dash, numbers to three significant digits with thousands separated."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:#.3g}".rstrip(".")
    return f"{value:.1e}".replace("e-0", "e-")


def _phase_bars(runs: Sequence[RunRecords]) -> list[dict[str, Any]]:
    """A bar a timed run: its label, its whole and its (phase, seconds, share of the longest bar in percent)."""
    times = {run.label: plots.phase_seconds(run) for run in runs}
    longest = max((sum(phases.values()) for phases in times.values()), default=0.0)
    return [
        {
            "label": label,
            "total": sum(phases.values()),
            "parts": [(phase, seconds, 100 * seconds / longest) for phase, seconds in phases.items()],
        }
        for label, phases in times.items()
        if phases
    ]


def _facts(runs: Sequence[RunRecords]) -> dict[str, list[str]]:
    """Fact -> one text a run."""
    return {
        "Rollout steps": [format_cell(run.rows[-1]["step"]) for run in runs],
        "Optimizer updates": [format_cell(run.rows[-1].get("gradient_step")) for run in runs],
        "Response tokens": [_total(run, "response_tokens") for run in runs],
        "Wall time of the steps": [_duration(run) for run in runs],
        "Completions not judged": [_total(run, "verdicts_unjudged") for run in runs],
        "Groups failed": [_total(run, "groups_failed") for run in runs],
        "Groups dropped, rewards all equal": [_total(run, "groups_dropped_uniform") for run in runs],
        "Groups dropped, none judged": [_total(run, "groups_dropped_unjudged") for run in runs],
        "Peak learner memory": [_memory(run) for run in runs],
    }


def _total(run: RunRecords, name: str) -> str:
    values = run.series(name)[1]
    return format_cell(int(values.sum()) if values.size else None)


def _duration(run: RunRecords) -> str:
    seconds = run.series("seconds_step")[1]
    return format_duration(float(seconds.sum())) if seconds.size else format_cell(None)


def _memory(run: RunRecords) -> str:
    peak = run.series("memory_learner_bytes")[1]
    return f"{peak.max() / 2**30:.2f} GiB" if peak.size else format_cell(None)


def _shared_config(runs: Sequence[RunRecords]) -> dict[str, Any]:
    different = config_differences(list(runs))
    return {key: value for key, value in runs[0].config.items() if key not in different}
