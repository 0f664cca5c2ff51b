"""Verdicts of stored samples; no model is needed."""

from __future__ import annotations

from pathlib import Path

from pyrl.config import ConfigError
from pyrl.evaluation.config import EvaluationConfig
from pyrl.evaluation.errors import EvaluationError
from pyrl.evaluation.store import read_questions, read_samples, replace_samples
from pyrl.evaluation.votes import add_votes
from pyrl.reward import RewardPool, grader_version
from pyrl.reward.process import GraderStartError
from pyrl.reward.tasks import least_timeout

DEFAULT_SECONDS = 5.0


def check_graders(config: EvaluationConfig) -> None:
    """Start each grader once, before anything is drawn. Raises ConfigError for one that is unknown or that this machine
    cannot run."""
    for grader in sorted({benchmark.grader for benchmark in config.chosen.values()}):
        _pool(config, grader, workers=1).close()


def _pool(config: EvaluationConfig, grader: str, workers: int, loader: str | None = None) -> RewardPool:
    try:
        seconds = config.grader_timeout_seconds or max(DEFAULT_SECONDS, least_timeout(grader))
        return RewardPool(grader, workers, seconds, loader=loader)
    except ConfigError as error:
        raise ConfigError(f"benchmarks.NAME.grader {grader!r}, grader_timeout_seconds: {error}") from error
    except GraderStartError as error:
        raise EvaluationError(f"grader {grader!r}: {error}; the samples are kept") from error


def grade_folder(config: EvaluationConfig, folder: Path, *, again: bool = False) -> int:
    """Grade the samples that have no verdict of the config's grader in its present version, or none with a vote;
    `again`: all. Returns how many were graded. Raises ConfigError for a grader that is unknown or that this machine
    cannot run."""
    samples = list(read_samples(folder).values())
    truths = {(q["benchmark"], q["id"]): q["ground_truth"] for q in read_questions(folder)}
    graded = 0
    for grader in sorted({benchmark.grader for benchmark in config.chosen.values()}):
        with _pool(config, grader, config.grader_workers) as pool:
            version = grader_version(grader)
            mine = [
                s
                for s in samples
                if config.benchmarks[s["benchmark"]].grader == grader
                and (again or "vote" not in s or (s["grader"], s["grader_version"]) != (grader, version))
            ]
            verdicts = pool.grade([(s["text"], truths[s["benchmark"], s["question"]]) for s in mine])
        for sample, verdict in zip(mine, verdicts, strict=True):
            sample.update(
                verdict=verdict.outcome,
                reason=verdict.reason,
                extracted=verdict.extracted,
                grader=grader,
                grader_version=version,
            )
        add_votes(mine, grader, lambda loader, task=grader: _pool(config, task, config.grader_workers, loader))
        graded += len(mine)
    if graded:
        replace_samples(folder, samples)
    return graded
