"""The page and the picture of `pyrl analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from pyrl.analysis.analyze import Analysis, RunAnalysis
from pyrl.analysis.entropy_dynamics import PREDICTORS
from pyrl.analysis.law_plots import law_charts, write_sheet
from pyrl.analysis.plots import run_keys
from pyrl.analysis.report import format_cell, load_template

VERDICTS = {
    "follows": "follows the law",
    "reversed": "does not follow the law: the slope is reversed",
    "no slope": "does not follow the law: no slope",
    "bent": "does not follow the law: bent",
}


def render_html(analysis: Analysis) -> str:
    """The page as text: no script, no reference outside itself."""
    return load_template("analyze.html.j2").render(
        title=page_title(analysis),
        runs=run_keys([run.label for run in analysis.runs]),
        findings=[(run.label, finding(run), is_sound(run), notes(run)) for run in analysis.runs],
        shared=shared_findings(analysis),
        charts=[(chart, Markup(chart.svg())) for chart in law_charts(analysis)],
        law_rows=law_table(analysis),
        early_rows=early_table(analysis),
        size_rows=size_table(analysis),
        dynamics_rows=dynamics_table(analysis),
        sources=[(run.label, run.curve) for run in analysis.runs],
        method=analysis.options.method,
    )


def write_png(analysis: Analysis, path: Path) -> None:
    """Every chart on one sheet."""
    write_sheet(law_charts(analysis), [run.label for run in analysis.runs], path)


def page_title(analysis: Analysis) -> str:
    count = len(analysis.runs)
    return f"Entropy and reward of {analysis.runs[0].label if count == 1 else f'{count} runs'}"


def finding(run: RunAnalysis) -> str:
    """What is to be said of a run first."""
    if run.law is None:
        return f"no law fitted: {run.problem}."
    return f"{VERDICTS[run.check.verdict]} ({run.check.reason})."


def is_sound(run: RunAnalysis) -> bool:
    return run.check is not None and run.check.verdict == "follows"


def notes(run: RunAnalysis) -> list[str]:
    """Further sentences on a run: budget, missing data, what could not be done."""
    said = []
    if is_sound(run) and run.budget.spent is not None:
        low, high = run.budget.ceiling_low, run.budget.ceiling_high
        said.append(f"{run.budget.spent:.0%} of the gain that the law can reach is spent; the predicted ceiling is "
                    f"{run.budget.ceiling:.3g} ({low:.3g} to {high:.3g}).")  # fmt: skip
    if run.law is not None and run.law.n_dropped:
        said.append(f"{run.law.n_dropped} of {run.curve.steps.size} steps lack entropy or reward and are left out.")
    if run.curve.repeated_steps:
        said.append(f"{run.curve.repeated_steps} steps are logged more than once; the later value counts.")
    if run.early_problem:
        said.append(f"No early prediction: {run.early_problem}.")
    return said + [f"{problem[:1].upper()}{problem[1:]}." for problem in run.dynamics_problems]


def shared_findings(analysis: Analysis) -> list[str]:
    """What is to be said of the runs together."""
    said = []
    if one := analysis.one_law:
        verdict = "is rejected" if one.p < 0.05 else "is not rejected"
        said.append(f"One law for all runs {verdict}: F({one.degrees_of_freedom[0]}, {one.degrees_of_freedom[1]}) = "
                    f"{one.statistic:.3g}, p = {one.p:.2g}. It would be a = {one.a:.3g}, b = {one.b:.3g}, and leave "
                    f"an RMSE of {one.rmse_shared:.3g}; the runs' own laws leave {one.rmse_separate:.3g}.")  # fmt: skip
    if groups := analysis.groups:
        verdict = "differ" if groups.p < 0.05 else "are not told apart"
        said.append(f"The groups ({'; '.join(groups.groups)}) {verdict} by the spread of their runs: Wilks' lambda "
                    f"{groups.wilks_lambda:.3g}, F({groups.degrees_of_freedom[0]}, {groups.degrees_of_freedom[1]}) = "
                    f"{groups.statistic:.3g}, p = {groups.p:.2g}.")  # fmt: skip
    for what, problem in (
        ("one law for all runs", analysis.one_law_problem),
        ("groups", analysis.groups_problem),
        ("model size", analysis.sizes_problem),
    ):
        if problem:
            said.append(f"No test of {what}: {problem}.")
    return said


def law_table(analysis: Analysis) -> list[tuple[str, list[str]]]:
    """(label, cells) a fitted run."""
    return [
        (run.label, [str(run.law.n), _plus_minus(run.law.a, run.law.a_se), _plus_minus(run.law.b, run.law.b_se),
                     _plus_minus(run.law.ceiling, run.law.ceiling_se), format_cell(run.law.r2),
                     format_cell(run.law.rmse), _percent(run.budget.spent), _percent(run.law.noise.white_probability)])
        for run in analysis.fitted
    ]  # fmt: skip


def early_table(analysis: Analysis) -> list[tuple[str, list[str]]]:
    return [
        (run.label, [f"{run.early.n_fit} of {run.early.n_fit + run.early.n_predicted}", format_cell(run.early.rmse),
                     format_cell(run.early.noise_rmse), f"{run.early.end_error:+.3g}",
                     _percent(run.early.band_coverage)])
        for run in analysis.fitted
        if run.early is not None
    ]  # fmt: skip


def size_table(analysis: Analysis) -> list[tuple[str, list[str]]]:
    return [
        (name, [format_cell(trend.intercept), _plus_minus(trend.slope, trend.slope_se), format_cell(trend.r2),
                str(trend.n)])
        for name, trend in analysis.size_trends.items()
    ]  # fmt: skip


def dynamics_table(analysis: Analysis) -> list[tuple[str, list[str]]]:
    return [
        (f"{run.label}: {PREDICTORS[fit.predictor]}",
         [str(fit.n), _plus_minus(fit.slope, fit.slope_se), format_cell(fit.correlation),
          format_cell(fit.lag1_correlation)])
        for run in analysis.runs
        for fit in run.dynamics
    ]  # fmt: skip


def _plus_minus(value: float, se: float | None) -> str:
    return format_cell(value) if se is None else f"{format_cell(value)} \N{PLUS-MINUS SIGN} {se:.2g}"


def _percent(share: float | None) -> Any:
    return format_cell(None) if share is None else f"{share:.0%}"
