"""What `pyrl evaluate` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from pyrl.evaluation.held_out import POLICIES_NOT_METHODS
from pyrl.evaluation.scores import compare_folders
from pyrl.evaluation.statistics import Comparison

COMPARISON_CAPTION = (
    "95% interval by question; two-sided sign-flip test, which needs six questions for p < 0.05. "
    f"{POLICIES_NOT_METHODS}"
)


def score_table(scores: dict[str, Any]) -> Table:
    """For the terminal: a row a benchmark, then the means, then the paper's scores."""
    table = Table(title=escape(scores["model"]), caption="fractions, 95% intervals by question")
    for heading in ("", "avg@k", "95%", "pass@k", "maj@k", "truncated", "unjudged", "questions x k", "note"):
        table.add_column(heading)
    for name, b in scores["benchmarks"].items():
        lacking = f"{b['missing']} samples missing" if b["missing"] else ""
        best = [_headline(b, metric) for metric in ("pass_at_k", "maj_at_k")]
        table.add_row(
            name, _number(b["avg_at_k"]["mean"]), _interval(b["avg_at_k"]), *best,
            _number(b["truncated"]), _number(b["unjudged"]), f"{b['questions']} x {b['samples']}",
            "; ".join(filter(None, [escape(b["note"]), "first questions only" if b["partial"] else "", lacking])),
        )  # fmt: skip
    means = scores["means"]
    comparable = "as the paper's Avg" if means["over_rows_comparable_with_paper"] else "not comparable with the paper's"
    table.add_row("mean of benchmarks", _number(means["of_benchmarks"]))
    table.add_row("mean over rows", _number(means["over_rows"]), *[""] * 6, comparable)
    return table


def published_table(scores: dict[str, Any]) -> Table | None:
    """The paper's scores of the columns that were evaluated and its average; None without any."""
    if (paper := scores["published"]) is None:
        return None
    table = Table(title=f"for orientation: {paper['source']}")
    columns = list(next(iter(paper["scores"].values())))
    for heading in ("", *columns):
        table.add_column(heading)
    for model, row in paper["scores"].items():
        table.add_row(model, *(_number(row[column]) for column in columns))
    return table


def comparison_table(first: Path, second: Path) -> Table:
    """Paired differences of two folders, second minus first."""
    table = Table(title=f"{second} - {first}", caption=COMPARISON_CAPTION)
    for heading in ("", "difference", "95%", "p", "questions", "verdict on the second"):
        table.add_column(heading)
    for name, found in compare_folders(first, second).items():
        if isinstance(found, Comparison):
            table.add_row(
                name, f"{found.difference:+.3f}", f"{found.low:+.3f} to {found.high:+.3f}", f"{found.p:.2g}",
                str(found.questions), found.verdict,
            )  # fmt: skip
        else:
            table.add_row(name, *[""] * 4, escape(found))
    return table


def _headline(benchmark: dict[str, Any], metric: str) -> str:
    """The score at `headline_k`; said where not every question has so many judged samples."""
    if (k := benchmark["headline_k"]) is None:
        return "-"
    score = benchmark[metric][str(k)]
    over = "" if score["questions"] == benchmark["questions"] else f", {score['questions']} questions"
    return f"{_number(score['mean'])} (k = {k}{over})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(score: dict[str, float | None]) -> str:
    return "-" if score["low"] is None else f"{score['low']:.3f} to {score['high']:.3f}"
