"""report.html of an evaluation folder: its scores, and samples to read by verdict."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyrl.analysis.report import load_template
from pyrl.telemetry.jsonl import read_jsonl

VERDICTS = ("right", "wrong", "unjudged")
LONGEST_TEXT = 20_000
"""Characters of a response that are shown: its beginning and its end."""

Sample = dict[str, Any]


def write_evaluation_page(folder: Path, shown: int) -> Path:
    """Write `report.html` from `scores.json`, `questions.json` and `samples.jsonl`, which need no model; returns its
    path. `shown`: samples of each benchmark and verdict."""
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    questions = {(q["benchmark"], q["id"]): q for q in json.loads((folder / "questions.json").read_text("utf-8"))}
    samples = list(read_jsonl(folder / "samples.jsonl"))
    picked = pick(samples, shown)
    page = load_template("evaluation.html.j2").render(
        title=f"Evaluation of {Path(scores['model']).name}",
        scores=scores,
        samples=[_shown(s, questions[s["benchmark"], s["question"]]) for s in picked],
        stored=len(samples),
        verdicts=VERDICTS,
    )
    path = folder / "report.html"
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def pick(samples: Iterable[Sample], shown: int) -> list[Sample]:
    """Up to `shown` samples of each benchmark and verdict: the first of every question, then the second, and so on."""
    groups: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample["benchmark"], sample["verdict"]].append(sample)
    return [s for own in groups.values() for s in sorted(own, key=lambda s: s["sample"])[:shown]]


def _shown(sample: Sample, question: dict[str, str]) -> dict[str, Any]:
    return sample | {
        "prompt": question["prompt"],
        "ground_truth": question["ground_truth"],
        "text": shorten(sample["text"]),
    }


def shorten(text: str) -> str:
    """At most `LONGEST_TEXT` characters; what is left out of the middle is said."""
    left_out = len(text) - LONGEST_TEXT
    if left_out <= 0:
        return text
    half = LONGEST_TEXT // 2
    return f"{text[:half]}\n[... {left_out:,} characters are in samples.jsonl ...]\n{text[-half:]}"
