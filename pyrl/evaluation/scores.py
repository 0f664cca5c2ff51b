"""scores.json of an evaluation folder: every statistic with its 95% interval by question."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from pyrl.config import ConfigError
from pyrl.evaluation import published
from pyrl.evaluation.config import EvaluationConfig
from pyrl.evaluation.intervals import score_interval
from pyrl.evaluation.metrics import maj_at_k, pass_at_k_of_counts
from pyrl.evaluation.statistics import Comparison, compare_paired
from pyrl.evaluation.store import SCORES, Sample, read_questions, read_samples, write_whole
from pyrl.evaluation.votes import votes

HEADLINE_SHARE = 0.9
"""Of the questions with a verdict; so many must have k judged samples for pass@k and maj@k to stand in the table.
`scores.json` has every k."""


def score_folder(config: EvaluationConfig, folder: Path) -> dict[str, Any]:
    """Compute, write `scores.json` and return it."""
    grouped = _grouped(read_samples(folder).values())
    asked = Counter(question["benchmark"] for question in read_questions(folder))
    benchmarks = {}
    for name, b in config.chosen.items():
        found = score_benchmark(grouped.get(name, {}))
        benchmarks[name] = found | {
            "missing": asked[name] * b.samples - found["rows"],
            "partial": config.max_questions is not None,
            "column": b.column,
            "note": b.note,
            "settings": b.model_dump(mode="json", include={"temperature", "top_p", "max_tokens", "template", "grader"}),
        }
    scores = {
        "model": str(config.model),
        "benchmarks": benchmarks,
        "means": means(benchmarks),
        "published": published.beside([b.column for b in config.chosen.values()]),
    }
    write_whole(folder / SCORES, json.dumps(scores, indent=2, allow_nan=False) + "\n")
    return scores


def score_benchmark(questions: dict[str, list[Sample]]) -> dict[str, Any]:
    """Statistics of graded samples by question. Samples that could not be judged have no part in a score: a question
    counts by its judged samples, one without any is left out, and pass@k and maj@k are over the questions that have at
    least k, whose number stands beside them. `headline_k`: the most that `HEADLINE_SHARE` of the judged ones have."""
    samples = [s for own in questions.values() for s in own]
    judged = {q: [s for s in own if s["verdict"] in ("right", "wrong")] for q, own in questions.items()}
    judged = {q: own for q, own in judged.items() if own}
    right = [[_right(s) for s in own] for own in judged.values()]
    answers = [votes(own) for own in judged.values()]
    ks = powers_of_two(max(map(len, right), default=0))
    return {
        "questions": len(questions),
        "rows": len(samples),
        "judged": sum(map(len, judged.values())),
        "samples": max((len(own) for own in questions.values()), default=0),
        "questions_without_verdict": len(questions) - len(judged),
        "avg_at_k": with_interval([np.mean([_right(s) for s in own]) for own in judged.values()]),
        "pass_at_k": {str(k): _pass(right, k) for k in ks},
        "maj_at_k": {str(k): _maj(answers, right, k) for k in ks},
        "headline_k": max((k for k in ks if np.mean([len(own) >= k for own in right]) >= HEADLINE_SHARE), default=None),
        "truncated": _share(samples, lambda s: s["finish_reason"] == "length"),
        "unjudged": _share(samples, lambda s: s["verdict"] == "unjudged"),
        "empty": _share(samples, lambda s: not s["text"].strip()),
        "without_answer": _share(samples, lambda s: s["verdict"] == "wrong" and s["extracted"] is None),
        "tokens_mean": float(np.mean([s["tokens"] for s in samples])) if samples else None,
    }


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`, and `most`."""
    return sorted({2**i for i in range(most.bit_length()) if 2**i <= most} | ({most} if most else set()))


def with_interval(values: Any) -> dict[str, float | None]:
    """Mean of a value in [0, 1] per question and its 95% interval (`score_interval`).

    Null where undefined: without a question the mean, with fewer than two the interval.
    """
    found = np.asarray(list(values), dtype=np.float64)
    low, high = score_interval(found) if found.size > 1 else (None, None)
    return {"mean": float(found.mean()) if found.size else None, "low": low, "high": high}


def means(benchmarks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Plain mean of benchmarks, and mean over validation rows, which the paper prints as its average.

    Comparable with the paper only where the benchmarks are its columns, with its numbers of rows and its settings.
    """
    scored = [b for b in benchmarks.values() if b["avg_at_k"]["mean"] is not None]
    values, rows = [b["avg_at_k"]["mean"] for b in scored], [b["judged"] for b in scored]
    rows_by_column = {b["column"]: b["rows"] for b in benchmarks.values() if b["column"]}
    whole = len(scored) == len(benchmarks) == len(published.COLUMNS)
    alike = all(b["settings"] == published.settings(b["column"]) for b in benchmarks.values() if b["column"])
    return {
        "of_benchmarks": float(np.mean(values)) if values else None,
        "over_rows": float(np.average(values, weights=rows)) if values else None,
        "over_rows_comparable_with_paper": whole and rows_by_column == published.ROWS and alike,
    }


def compare_folders(first: Path, second: Path) -> dict[str, Comparison | str]:
    """Benchmark -> second minus first on its questions in pairs, or why they cannot be compared.

    Raises ConfigError where the folders share no benchmark.
    """
    asked = [_contents(folder) for folder in (first, second)]
    one, other = (_grouped(read_samples(folder).values()) for folder in (first, second))
    common = [name for name in one if name in other]
    if not common:
        raise ConfigError(f"{first} and {second} have no samples of a benchmark in common: nothing to compare")
    found: dict[str, Comparison | str] = {}
    for name in common:
        if asked[0].get(name) != asked[1].get(name):
            found[name] = "not compared: the questions, their prompts or their ground truths differ"
        else:
            found[name] = _compare(one[name], other[name])
    return found


def _contents(folder: Path) -> dict[str, set[tuple[str, str, str]]]:
    """(id, prompt, ground truth) of each benchmark's questions; templates, which models need not share, come later."""
    contents: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
    for q in read_questions(folder):
        contents[q["benchmark"]].add((q["id"], q["prompt"], q["ground_truth"]))
    return dict(contents)


def _compare(one: dict[str, list[Sample]], other: dict[str, list[Sample]]) -> Comparison | str:
    sides = [[s for own in side.values() for s in own] for side in (one, other)]
    if any(s["verdict"] is None for side in sides for s in side):
        return "not compared: some samples are not graded yet"
    graders = [{(s["grader"], s["grader_version"]) for s in side} for side in sides]
    if graders[0] != graders[1]:
        return "not compared: other graders or versions; grade one of them again with --regrade"
    if unequal := sorted(one.keys() ^ other.keys()):
        return f"not compared: {len(unequal)} questions are in one folder alone, {unequal[0]} for instance"
    before, after = ({q: _mean(own) for q, own in side.items()} for side in (one, other))
    pairs = [(before[q], after[q]) for q in one if before[q] is not None and after[q] is not None]
    if len(pairs) < 2:
        return f"not compared: {len(pairs)} questions were judged on both sides, at least 2 are needed"
    return compare_paired(*map(list, zip(*pairs, strict=True)))


def _mean(samples: list[Sample]) -> float | None:
    judged = [_right(s) for s in samples if s["verdict"] in ("right", "wrong")]
    return float(np.mean(judged)) if judged else None


def _grouped(samples: Any) -> dict[str, dict[str, list[Sample]]]:
    grouped: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in sorted(samples, key=lambda s: s["sample"]):
        grouped[sample["benchmark"]][sample["question"]].append(sample)
    return {name: dict(questions) for name, questions in grouped.items()}


def _right(sample: Sample) -> bool:
    return sample["verdict"] == "right"


def _share(samples: list[Sample], holds: Any) -> float | None:
    return sum(map(holds, samples)) / len(samples) if samples else None


def _pass(right: list[list[bool]], k: int) -> dict[str, float | int | None]:
    """Over the questions with at least `k` judged samples."""
    counts = [(sum(own), len(own)) for own in right if len(own) >= k]
    return with_interval(pass_at_k_of_counts(*zip(*counts, strict=True), k)) | {"questions": len(counts)}


def _maj(answers: list[list[str | None]], right: list[list[bool]], k: int) -> dict[str, float | int | None]:
    """Over the questions with at least `k` judged samples."""
    ballots = [(voted, own) for voted, own in zip(answers, right, strict=True) if len(own) >= k]
    scores = [maj_at_k([voted], np.array([own]), k) for voted, own in ballots]
    return with_interval(scores) | {"questions": len(ballots)}
