"""The page and the picture of `pyrl analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from pyrl.analysis.analyze import Analysis, RunAnalysis
from pyrl.analysis.entropy_dynamics import PREDICTORS
from pyrl.analysis.law_plots import law_charts, write_sheet
from pyrl.analysis.plots import run_keys
from pyrl.analysis.regressors import CONTROLLED, ENTROPY_FORMS, MARGIN, TIME_FORMS, Comparison
from pyrl.analysis.report import format_cell, load_template

VERDICTS = {
    "follows": "follows the law",
    "reversed": "does not follow the law: the slope is reversed",
    "no slope": "does not follow the law: no slope",
    "bent": "does not follow the law: bent",
    "trend in time": "cannot be told from a trend in time",
    "another form": "follows entropy, but not as exp(H)",
}

RIVALS = (*ENTROPY_FORMS, *TIME_FORMS, *(name + CONTROLLED for name in ENTROPY_FORMS))


def render_html(analysis: Analysis) -> str:
    """The page as text: no script, no reference outside itself."""
    return load_template("analyze.html.j2").render(
        title=page_title(analysis),
        runs=run_keys([run.label for run in analysis.runs]),
        findings=[(run.label, finding(run), is_sound(run), notes(run)) for run in analysis.runs],
        shared=shared_findings(analysis),
        charts=[(chart, Markup(chart.svg())) for chart in law_charts(analysis)],
        law_rows=law_table(analysis),
        rival_names=RIVALS,
        rival_rows=rivals_table(analysis),
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
    if run.check is not None and run.check.rivals is not None:
        said.append(preference(run.check.rivals))
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


def preference(rivals: Comparison) -> str:
    """Which regressor the data prefer, by how much, and what they prefer where the step is a control."""
    first, *others = rivals.candidates
    second = next(c for c in others if c.name.removesuffix(CONTROLLED) != first.name.removesuffix(CONTROLLED))
    strength = "" if second.behind >= MARGIN else ", which does not tell them apart"
    return (f"Of exp(H), H, log H and the step, the data prefer {first.name}, by {second.behind:.1f} of AICc over "
            f"{second.name}{strength}.")  # fmt: skip


def rivals_table(analysis: Analysis) -> list[tuple[str, list[str]]]:
    """(label, AICc behind the best for each of `RIVALS`) a run that has them."""
    return [
        (run.label, [f"{rivals.of(name).behind:.1f}" if rivals.has(name) else format_cell(None) for name in RIVALS])
        for run in analysis.fitted
        if (rivals := run.check.rivals) is not None
    ]


def shared_findings(analysis: Analysis) -> list[str]:
    """What is to be said of the runs together."""
    said = []
    if groups := analysis.groups:
        verdict = "is rejected" if groups.p < 0.05 else "is not rejected"
        said.append(f"With runs as the observations, one law for all groups ({'; '.join(groups.groups)}) {verdict}: "
                    f"Wilks' lambda {groups.wilks_lambda:.3g} over {groups.runs} runs, "
                    f"F({groups.degrees_of_freedom[0]}, {groups.degrees_of_freedom[1]}) = {groups.statistic:.3g}, "
                    f"p = {groups.p:.2g}.")  # fmt: skip
    if one := analysis.one_law:
        verdict = "is rejected" if one.p < 0.05 else "is not rejected"
        said.append(f"With steps as the observations, one law for all runs {verdict}: "
                    f"F({one.degrees_of_freedom[0]}, {one.degrees_of_freedom[1]}) = {one.statistic:.3g}, "
                    f"p = {one.p:.2g}. This counts the noise within a run alone, not that runs of one setting differ"
                    f"{'' if groups else ', and no group has several runs to show that'}. It would be "
                    f"a = {one.a:.3g}, b = {one.b:.3g}, and leave an RMSE of {one.rmse_shared:.3g}; the runs' own laws "
                    f"leave {one.rmse_separate:.3g}.")  # fmt: skip
    for what, problem in (
        ("groups", analysis.groups_problem),
        ("one law for all runs", analysis.one_law_problem),
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
                     format_cell(run.early.noise_rmse), format_cell(run.early.noise_sd), f"{run.early.end_error:+.3g}",
                     _percent(run.early.band_coverage), _percent(run.early.law_band_coverage)])
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
