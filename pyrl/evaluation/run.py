"""`pyrl evaluate`: load, generate what is missing, grade, score; and the same without a model."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from pyrl.config import ConfigError
from pyrl.data.tokenizer import load_tokenizer
from pyrl.evaluation.benchmarks import load_benchmarks
from pyrl.evaluation.config import EvaluationConfig, load_evaluation
from pyrl.evaluation.generate import generate_missing
from pyrl.evaluation.grade import check_graders, grade_folder
from pyrl.evaluation.scores import score_folder
from pyrl.evaluation.store import SETTINGS, open_folder, read_samples, weights_fingerprint, write_settings

log = logging.getLogger("pyrl")

REGRADE_OVERRIDE = re.compile(r"(benchmarks\.[^.=]+\.grader|grader_workers|grader_timeout_seconds|page_samples)=")
UNJUDGED_ALARM, NO_ANSWER_ALARM = 0.01, 0.5
"""Warn above these shares of samples."""


def run_evaluation(config: EvaluationConfig, folder: Path) -> dict[str, Any]:
    """Evaluate into `folder`, or go on there; returns the scores. Raises ConfigError, EvaluationError."""
    tokenizer = load_tokenizer(config.model, field="model")
    questions = load_benchmarks(config, tokenizer)
    check_graders(config)
    open_folder(folder, config, questions, weights=weights_fingerprint(config.model))
    generate_missing(config, folder, questions, tokenizer)
    return grade_and_score(config, folder)


def grade_and_score(config: EvaluationConfig, folder: Path) -> dict[str, Any]:
    """Grade what has no verdict yet and score everything; returns the scores."""
    grade_folder(config, folder)
    return _scored(config, folder)


def regrade_folder(folder: Path, overrides: list[str]) -> tuple[EvaluationConfig, dict[str, Any]]:
    """Grade all samples of a folder again and score them; `overrides` change its settings, as
    `benchmarks.NAME.grader=math:paper`. No model is read. Returns the settings and the scores.

    Raises ConfigError: no folder of an evaluation, or overrides that samples would have to be drawn anew for.
    """
    if not (folder / SETTINGS).is_file():
        raise ConfigError(f"{folder} holds no {SETTINGS}: it is not the folder of an evaluation")
    if other := [text for text in overrides if not REGRADE_OVERRIDE.match(text)]:
        raise ConfigError(
            f"{', '.join(other)}: --regrade takes benchmarks.NAME.grader, grader_workers, grader_timeout_seconds and "
            "page_samples alone; samples are as they are"
        )
    if not read_samples(folder):
        raise ConfigError(f"{folder} holds no sample yet: call the command that made it again")
    config = load_evaluation(folder / SETTINGS, overrides)
    check_graders(config)
    grade_folder(config, folder, again=True)
    write_settings(folder, config)
    return config, _scored(config, folder)


def _scored(config: EvaluationConfig, folder: Path) -> dict[str, Any]:
    scores = score_folder(config, folder)
    for name, benchmark in scores["benchmarks"].items():
        if (benchmark["unjudged"] or 0) > UNJUDGED_ALARM:
            log.warning("%s: %.1f%% of the samples could not be judged", name, 100 * benchmark["unjudged"])
        if benchmark["missing"]:
            log.warning("%s: %d samples were never drawn: these scores are of the others", name, benchmark["missing"])
        if benchmark["empty"] == 1.0:
            log.warning("%s: every response is empty: is this the right template for the model?", name)
        elif (benchmark["without_answer"] or 0) > NO_ANSWER_ALARM:
            log.warning(
                "%s: %.1f%% of the responses hold no answer where the grader looks for one: does the model follow "
                "`instruction`, and is `max_tokens` enough?", name, 100 * benchmark["without_answer"]
            )  # fmt: skip
    return scores
