"""Table 2 of arXiv 2505.22617, for orientation: percent there, fractions here."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

COLUMNS = ("AIME24", "AIME25", "AMC", "MATH500", "OMNI-MATH", "OlympiadBench", "Minerva")
ROWS = dict(zip(COLUMNS, (960, 960, 2656, 500, 2821, 675, 272), strict=True))
"""Validation rows (questions x samples) that reproduce the table's `Avg` from its columns."""
SAMPLED = COLUMNS[:3]
"""Columns of which 32 samples are drawn at temperature 0.6; the others are greedy."""
AVERAGE = "Avg"
"""The table's last column, over all seven: the mean over rows."""
SOURCE = "arXiv 2505.22617, Table 2"
_PERCENT = {
    "Qwen2.5-7B GRPO": (21.2, 9.6, 58.7, 78.8, 27.9, 40.7, 36.7, 38.6),
    "Qwen2.5-7B clip-higher": (18.1, 11.5, 56.6, 79.2, 29.8, 43.3, 40.4, 38.8),
    "Qwen2.5-7B Clip-Cov": (22.1, 15.8, 58.2, 80.4, 30.5, 44.1, 41.1, 40.4),
    "Qwen2.5-7B KL-Cov": (22.6, 12.9, 61.4, 80.8, 29.1, 42.6, 38.2, 40.6),
    "Qwen2.5-32B GRPO": (21.8, 16.2, 69.7, 84.2, 35.2, 43.6, 45.5, 45.8),
    "Qwen2.5-32B clip-higher": (35.6, 22.3, 69.5, 77.2, 35.1, 42.5, 43.0, 47.2),
    "Qwen2.5-32B Clip-Cov": (32.3, 22.7, 67.2, 87.0, 42.0, 57.2, 46.0, 50.3),
    "Qwen2.5-32B KL-Cov": (36.8, 30.8, 74.5, 84.6, 39.1, 49.0, 46.3, 52.2),
}
SCORES = {
    model: {column: round(value / 100, 3) for column, value in zip((*COLUMNS, AVERAGE), values, strict=True)}
    for model, values in _PERCENT.items()
}


def settings(column: str) -> dict[str, Any]:
    """Of the paper's protocol, by their names in `benchmarks.NAME` (`configs/eval/paper.yaml`)."""
    temperature = 0.6 if column in SAMPLED else 0.0
    return {
        "temperature": temperature, "top_p": 1.0, "max_tokens": 8192, "template": "r1_zero", "grader": "math:paper"
    }  # fmt: skip


def beside(columns: Collection[str | None]) -> dict[str, Any] | None:
    """`source`, and `scores` by model: the table's columns among `columns`, and its average; None where none is."""
    wanted = [column for column in COLUMNS if column in columns]
    if not wanted:
        return None
    picked = {model: {column: row[column] for column in (*wanted, AVERAGE)} for model, row in SCORES.items()}
    return {"source": SOURCE, "scores": picked}
