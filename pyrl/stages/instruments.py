"""Instruments of a step: entropy by source and difficulty, and its change as measured and as covariance predicts it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pyrl.algorithms.group_moments import GroupMoments, group_moments
from pyrl.config import InstrumentsConfig
from pyrl.learner.learner import Learner
from pyrl.learner.parallel import Parallel
from pyrl.stages.collect import Collected, GroupFacts
from pyrl.telemetry.names import DIFFICULTY_BINS, ENTROPY_PREDICTORS
from pyrl.types import PackedBatch, StepRecord, TokenScores

Masks = dict[str, np.ndarray]
"""Label -> bool [groups], the prompt groups that it covers."""


def measure_dynamics(
    config: InstrumentsConfig,
    collected: Collected,
    batches: list[PackedBatch],
    before: list[TokenScores],
    learner: Learner,
    parallel: Parallel,
    *,
    step: int,
) -> StepRecord:
    """The fields of group entropy and entropy change, after the step's updates. Collective.

    `batches`: this rank's of all updates; `before`: their scores under the generating policy. In steps that are due the
    learner scores them once more.
    """
    every = config.entropy_change_every
    after = learner.score(batches) if every and step % every == 0 else None
    kept = [facts for facts, _ in collected.kept]
    group_of_sample = torch.tensor([place for place, _ in collected.kept_samples])
    tokens, responses = group_moments(
        batches, before, after, group_of_sample, len(kept), dp_group=parallel.dp_group
    )
    everywhere = np.ones(len(kept), dtype=bool)
    sources, bins = by_source(kept), by_difficulty(kept)
    record: StepRecord = {
        "entropy_by_source": _of_each(sources, tokens.entropy),
        "entropy_by_difficulty": _of_each(bins, tokens.entropy),
        "entropy_response_mean_by_source": _of_each(sources, responses.entropy),
        "entropy_response_mean_by_difficulty": _of_each(bins, responses.entropy),
        "entropy_change_measured": tokens.entropy_change(everywhere),
        "entropy_change_response_mean": responses.entropy_change(everywhere),
        "entropy_change_by_difficulty": _of_each(bins, tokens.entropy_change),
    }
    for name in ENTROPY_PREDICTORS:
        covariance = _predictor(name, tokens, responses)
        record |= {f"cov_{name}": covariance(everywhere), f"cov_{name}_by_difficulty": _of_each(bins, covariance)}
    return record


def by_source(groups: list[GroupFacts]) -> Masks:
    """The groups of each data source, sources in alphabetical order."""
    return {source: np.array([g.source == source for g in groups]) for source in sorted({g.source for g in groups})}


def by_difficulty(groups: list[GroupFacts]) -> Masks:
    """The groups of each accuracy, the share of their judged responses that are right: 0, four parts, 1."""
    accuracy = np.array([g.verdicts.count("right") / (len(g.verdicts) - g.verdicts.count("unjudged")) for g in groups])
    inside = np.select([accuracy == 0, accuracy == 1], [0, 5], np.clip(np.ceil(accuracy * 4), 1, 4)).astype(int)
    return {name: inside == number for number, name in enumerate(DIFFICULTY_BINS)}


def _predictor(
    name: str, tokens: GroupMoments, responses: GroupMoments
) -> Callable[[np.ndarray], float | None]:
    moments = responses if name.startswith("response") else tokens
    return lambda groups: moments.covariance(groups, with_probability=name.endswith("pi_adv"))


def _of_each(masks: Masks, value: Callable[[np.ndarray], float | None]) -> dict[str, float] | None:
    """Where it is defined."""
    values = {label: value(groups) for label, groups in masks.items()}
    return {label: found for label, found in values.items() if found is not None} or None
