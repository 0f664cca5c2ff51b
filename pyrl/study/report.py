"""The report of a study: one self-contained page, one picture, and every number as JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup

from pyrl.analysis import law_report
from pyrl.analysis.analyze import jsonable, to_json
from pyrl.analysis.law_plots import write_sheet
from pyrl.analysis.plots import run_keys
from pyrl.analysis.report import format_cell, load_template
from pyrl.study.charts import study_charts
from pyrl.study.config import StudyConfig
from pyrl.study.data import write_data
from pyrl.study.findings import COLLAPSE_SHARES, Collapse, Findings, Flatness, Interval, find
from pyrl.study.reached import WINDOW
from pyrl.study.runner import is_done, planned_runs


def write_study_report(study: StudyConfig, folder: Path) -> list[Path]:
    """Write `report.html`, `report.png`, `study.json` and the CSV files of `write_data` of the runs that are done into
    `folder`; the paths of the first three, none where no run is done."""
    planned = planned_runs(study, folder)
    done = [run for run in planned if is_done(run)]
    if not done:
        return []
    findings = find(study, done, [run for run in planned if run not in done])
    paths = [folder / name for name in ("report.html", "report.png", "study.json")]
    _write(paths[0], render_html(findings))
    write_sheet(study_charts(findings), [arm.arm for arm in findings.arms], paths[1])
    _write(paths[2], json.dumps(study_json(findings), indent=1, allow_nan=False) + "\n")
    write_data(done, folder)
    return paths


def render_html(findings: Findings) -> str:
    """The page as text: no script, no reference outside itself."""
    law = findings.law
    return load_template("study.html.j2").render(
        title=f"{len(findings.arms)} arms, {len(findings.done)} runs",
        arms=run_keys([arm.arm for arm in findings.arms]),
        missing=[run.title for run in findings.missing],
        baseline=findings.baseline,
        window=WINDOW,
        charts=[(chart, Markup(chart.svg())) for chart in study_charts(findings)],
        arm_rows=arm_table(findings),
        pass_rows=pass_table(findings, "pass_at_k"),
        difference_rows=pass_table(findings, "pass_difference"),
        pass_head=[f"pass@{k}" for k in _all_k(findings)],
        collapse_head=_collapse_head(),
        collapse_rows=[(c.run, _collapse_cells(c)) for c in findings.collapse],
        reached_rows=[(r.run, [format_cell(v) for v in (r.reward, r.step, r.entropy, r.entropy_ratio)])
                      for r in findings.reached],
        flat_rows=[(f.run, _flat_cells(f)) for f in findings.flatness],
        law_rows=law_report.law_table(law) if law else [],
        law_said=[f"{run.label}: {law_report.finding(run)}" for run in law.runs] if law else [],
        rival_names=law_report.RIVALS,
        rival_rows=law_report.rivals_table(law) if law else [],
        law_shared=law_report.shared_findings(law) if law else [],
        early_rows=law_report.early_table(law) if law else [],
        dynamics_rows=law_report.dynamics_table(law) if law else [],
        cause_rows=[(f"{c.arm}, accuracy {c.difficulty}", [str(c.steps), f"{c.entropy_change:+.5f}",
                     f"{c.covariance:+.4f}", format_cell(c.correlation)]) for c in findings.causes],
        steering_rows=[(f"{p.arm}, {p.setting} = {p.value}", [interval_cell(p.entropy), interval_cell(p.reward),
                        format_cell(p.selected_tokens)]) for p in findings.steering],
    )  # fmt: skip


def study_json(findings: Findings) -> dict[str, Any]:
    """Every number, with null for what is not defined."""
    numbers = {
        name: [dataclasses.asdict(item) for item in getattr(findings, name)]
        for name in ("arms", "collapse", "flatness", "reached", "causes", "steering")
    }
    return jsonable(
        {
            "study": findings.study.model_dump(mode="json"),
            "baseline": findings.baseline,
            "runs": [run.title for run in findings.done],
            "missing_runs": [run.title for run in findings.missing],
            **numbers,
            "law": findings.law and to_json(findings.law),
        }
    )


def arm_table(findings: Findings) -> list[tuple[str, list[str]]]:
    return [
        (arm.arm, [str(len(arm.seeds)), *(interval_cell(value) for value in (
            arm.held_out, arm.held_out_difference, arm.entropy, arm.entropy_ratio, arm.reward, arm.reward_difference,
            arm.entropy_ratio_at_reward,
        )), format_cell(arm.selected_tokens)])
        for arm in findings.arms
    ]  # fmt: skip


def pass_table(findings: Findings, what: Literal["pass_at_k", "pass_difference"]) -> list[tuple[str, list[str]]]:
    found = [(arm.arm, getattr(arm, what)) for arm in findings.arms]
    return [(name, [interval_cell(of_k.get(k)) for k in _all_k(findings)]) for name, of_k in found if of_k]


def interval_cell(interval: Interval | None) -> str:
    """`0.31 (0.28 to 0.34)`"""
    if interval is None or interval.low is None:
        return format_cell(interval and interval.mean)
    return f"{format_cell(interval.mean)} ({format_cell(interval.low)} to {format_cell(interval.high)})"


def _all_k(findings: Findings) -> list[int]:
    return sorted({k for arm in findings.arms for k in arm.pass_at_k})


def _collapse_head() -> list[str]:
    shares = [f"{what} at {label}" for label in COLLAPSE_SHARES for what in ("entropy consumed", "gain")]
    return ["entropy, start", "end", "reward, start", "end", *shares]


def _collapse_cells(c: Collapse) -> list[str]:
    ends = [format_cell(v) for v in (c.entropy_start, c.entropy_end, c.reward_start, c.reward_end)]
    shares = [of[label] for label in c.entropy_consumed for of in (c.entropy_consumed, c.gain_reached)]
    return ends + [format_cell(None) if share is None else f"{share:.0%}" for share in shares]


def _flat_cells(f: Flatness) -> list[str]:
    if f.flat is None:
        return [str(f.steps), format_cell(None), format_cell(None)]
    slope = f"{f.slope_per_100_steps:+.4f} \N{PLUS-MINUS SIGN} {f.standard_error:.4f}"
    return [str(f.steps), slope, "yes" if f.flat else "no"]


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
