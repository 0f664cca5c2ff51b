"""`pyrl analyze`: every analysis of one or several training logs, as numbers, as one page and as a picture."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from pyrl.analysis.early_prediction import EARLY_SHARE, END_SHARE, EarlyPrediction, predict_from_start
from pyrl.analysis.entropy_dynamics import Dynamics, run_dynamics
from pyrl.analysis.entropy_law import Budget, EntropyLaw, Method, budget_left, finite_pairs, fit_entropy_law
from pyrl.analysis.law_checks import (
    GroupsTest,
    LawCheck,
    OneLawTest,
    SizeTrend,
    check_law,
    groups_test,
    one_law_test,
    size_trend,
)
from pyrl.analysis.training_logs import Curve, expand, read_curves
from pyrl.config import ConfigError

NOT_A_METHOD = re.compile(r"(^|\.)(seed|run_seed)$|path$|folder$|urls?$|port$")
"""Settings in which runs of one group may differ."""
SIZE = re.compile(r"(\d+\.?\d*(?:e[+-]?\d+)?)\s*([kmb]?)$", re.IGNORECASE)
SIZE_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}


@dataclass(frozen=True, slots=True)
class Options:
    """What the user may choose; a list holds nothing or one entry a run."""

    step: str | None = None
    entropy: str | None = None
    reward: str | None = None
    labels: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    """Parameters without embeddings, as `1.5B`."""
    method: Method = "ols"
    early_share: float = EARLY_SHARE


@dataclass(slots=True)
class RunAnalysis:
    """One run and what was found in it. `law` and what rests on it are None where `problem` says why."""

    curve: Curve
    group: str | None = None
    parameters: float | None = None
    problem: str | None = None
    law: EntropyLaw | None = None
    check: LawCheck | None = None
    end_entropy: float | None = None
    """log of the mean exp(H) of the last tenth of the finite pairs."""
    budget: Budget | None = None
    early: EarlyPrediction | None = None
    early_problem: str | None = None
    dynamics: list[Dynamics] = field(default_factory=list)
    dynamics_problems: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return self.curve.label

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Finite (entropy, reward)."""
        (entropy, reward), _ = finite_pairs(self.curve.entropy, self.curve.reward)
        return entropy, reward


@dataclass(slots=True)
class Analysis:
    """Everything `pyrl analyze` found."""

    runs: list[RunAnalysis]
    options: Options
    groups: GroupsTest | None = None
    """Over runs; where there is one it comes before `one_law`, which takes the runs of a group for equal."""
    groups_problem: str | None = None
    one_law: OneLawTest | None = None
    one_law_problem: str | None = None
    size_trends: dict[str, SizeTrend] = field(default_factory=dict)
    sizes_problem: str | None = None

    @property
    def fitted(self) -> list[RunAnalysis]:
        return [run for run in self.runs if run.law is not None]


def write_analysis(paths: Sequence[Path], out: Path, options: Options) -> Analysis:
    """Analyze logs and write `report.html`, `report.png` and `analysis.json` into `out`.

    Raises ConfigError, and writes nothing: unreadable input, contradictory options, or no run that a law can be
    fitted to.
    """
    from pyrl.analysis.law_report import render_html, write_png  # draws: only once there is something to draw

    analysis = analyze(paths, options)
    if not analysis.fitted:
        raise ConfigError("; ".join(f"{run.label}: {run.problem}" for run in analysis.runs))
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "analysis.json", json.dumps(to_json(analysis), indent=1, allow_nan=False) + "\n")
    _write(out / "report.html", render_html(analysis))
    write_png(analysis, out / "report.png")
    return analysis


def analyze(paths: Sequence[Path], options: Options) -> Analysis:
    """Read and analyze, without writing."""
    if not 0 < options.early_share < 1:
        raise ConfigError(f"--early-share {options.early_share}: want a fraction between 0 and 1, e.g. {EARLY_SHARE}")
    if options.method not in get_args(Method):
        raise ConfigError(f"--method {options.method}: want one of {', '.join(get_args(Method))}")
    names = {"step": options.step, "entropy": options.entropy, "reward": options.reward}
    curves = [curve for path in expand(paths) for curve in read_curves(path, **names)]
    for name in ("labels", "groups", "sizes"):
        given = getattr(options, name)
        if given and len(given) != len(curves):
            raise ConfigError(f"{len(given)} {name} for {len(curves)} runs ({', '.join(c.label for c in curves)}): "
                              f"give none or one a run, in their order")  # fmt: skip
    labels = options.labels or _distinct_labels(curves)
    curves = [dataclasses.replace(curve, label=label) for curve, label in zip(curves, labels, strict=True)]
    groups = options.groups or _config_groups(curves)
    sizes = [_parameters(size) for size in options.sizes] or [None] * len(curves)
    runs = [
        _analyze_run(RunAnalysis(curve, group, size), options)
        for curve, group, size in zip(curves, groups, sizes, strict=True)
    ]
    analysis = Analysis(runs, options)
    _compare(analysis)
    return analysis


def to_json(analysis: Analysis) -> dict[str, Any]:
    """Every number, with null for what is not defined."""
    return jsonable(
        {
            "law": "reward = -a exp(entropy) + b, entropy in nats a token",
            "options": dataclasses.asdict(analysis.options),
            "runs": [_run_json(run) for run in analysis.runs],
            "groups": analysis.groups and dataclasses.asdict(analysis.groups) | {"observations": "runs"},
            "groups_problem": analysis.groups_problem,
            "one_law": analysis.one_law and dataclasses.asdict(analysis.one_law) | {"observations": "steps"},
            "one_law_problem": analysis.one_law_problem,
            "size_trends": {name: dataclasses.asdict(trend) for name, trend in analysis.size_trends.items()},
            "sizes_problem": analysis.sizes_problem,
        }
    )


def _analyze_run(run: RunAnalysis, options: Options) -> RunAnalysis:
    curve, method = run.curve, options.method
    run.dynamics, run.dynamics_problems = run_dynamics(curve.rows)
    if run.pairs[1].size >= 2 and np.ptp(run.pairs[1]) == 0:
        run.problem = f"reward is constant ({run.pairs[1][0]:.6g} in all {run.pairs[1].size} pairs)"
        return run
    try:
        run.law = fit_entropy_law(curve.entropy, curve.reward, method=method)
    except ValueError as error:
        run.problem = str(error)
        return run
    run.check = check_law(run.law, curve.entropy, curve.reward, steps=curve.steps, method=method)
    entropy = run.pairs[0]
    run.end_entropy = float(np.log(np.exp(entropy[-max(1, round(END_SHARE * entropy.size)) :]).mean()))
    run.budget = budget_left(run.law, run.end_entropy)
    try:
        run.early = predict_from_start(
            curve.steps, curve.entropy, curve.reward, share=options.early_share, method=method
        )
    except ValueError as error:
        run.early_problem = str(error)
    return run


def _compare(analysis: Analysis) -> None:
    """What needs several runs."""
    runs = analysis.fitted
    if len(runs) >= 2:
        try:
            analysis.one_law = one_law_test([run.law for run in runs], [run.pairs for run in runs])
        except ValueError as error:
            analysis.one_law_problem = str(error)
    by_group: dict[str, list[EntropyLaw]] = {}
    for run in runs:
        if run.group is not None:
            by_group.setdefault(run.group, []).append(run.law)
    if len(by_group) >= 2 and any(len(laws) > 1 for laws in by_group.values()):
        try:
            analysis.groups = groups_test(by_group)
        except ValueError as error:
            analysis.groups_problem = str(error)
    sized = [run for run in runs if run.parameters is not None]
    if sized:
        try:
            for name in ("a", "b"):
                values = [getattr(run.law, name) for run in sized]
                analysis.size_trends[name] = size_trend([run.parameters for run in sized], values)
        except ValueError as error:
            analysis.sizes_problem = str(error)


def _distinct_labels(curves: Sequence[Curve]) -> list[str]:
    """Names of the files or folders; with their parent folder where two would be the same."""
    names = [curve.label for curve in curves]
    parents = [f"{curve.path.resolve().parent.name}/{curve.label}" for curve in curves]
    labels = [p if names.count(n) > 1 else n for n, p in zip(names, parents, strict=True)]
    return [f"{label} ({i})" if labels.count(label) > 1 else label for i, label in enumerate(labels, start=1)]


def _config_groups(curves: Sequence[Curve]) -> list[str | None]:
    """Runs whose settings differ in nothing but seed and places form a group, named by the settings that set it apart.

    None throughout where a run has no settings, or all agree.
    """
    if any(not curve.config for curve in curves):
        return [None] * len(curves)
    keys = sorted({key for curve in curves for key in curve.config if not NOT_A_METHOD.search(key)})
    differing = [key for key in keys if len({repr(curve.config.get(key)) for curve in curves}) > 1]
    if not differing:
        return [None] * len(curves)
    return [", ".join(f"{key}={curve.config[key]}" for key in differing if key in curve.config) for curve in curves]


def _parameters(text: str) -> float:
    found = SIZE.match(text.strip())
    number = float(found[1]) * SIZE_UNITS[found[2].lower()] if found else 0.0
    if number <= 0:
        raise ConfigError(f"--size {text}: want a number of parameters, as 494M, 7B or 1.5e9")
    return number


def _run_json(run: RunAnalysis) -> dict[str, Any]:
    curve, law = run.curve, run.law
    return {
        "label": run.label,
        "path": str(curve.path),
        "trainer": curve.trainer,
        "columns": dict(zip(("step", "entropy", "reward"), curve.columns, strict=True)),
        "group": run.group,
        "parameters": run.parameters,
        "steps": int(curve.steps.size),
        "first_step": int(curve.steps[0]) if curve.steps.size else None,
        "last_step": int(curve.steps[-1]) if curve.steps.size else None,
        "repeated_steps": curve.repeated_steps,
        "steps_without_entropy": int((~np.isfinite(curve.entropy)).sum()),
        "steps_without_reward": int((~np.isfinite(curve.reward)).sum()),
        "problem": run.problem,
        "law": law and dataclasses.asdict(law) | {f"{n}_interval_95": law.interval(n) for n in ("a", "b", "ceiling")},
        "check": run.check and dataclasses.asdict(run.check),
        "end_entropy": run.end_entropy,
        "budget": run.budget and run.budget._asdict(),
        "early_prediction": run.early and dataclasses.asdict(run.early),
        "early_prediction_problem": run.early_problem,
        "dynamics": [dataclasses.asdict(fit) for fit in run.dynamics],
        "dynamics_problems": run.dynamics_problems,
    }


def jsonable(value: Any) -> Any:
    """`value` of containers, NumPy arrays and numbers as JSON holds it; null for NaN and infinity."""
    if isinstance(value, dict):
        return {key: jsonable(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, np.generic):
        return jsonable(value.item())
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
