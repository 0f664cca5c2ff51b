"""What a study is: settings that all runs share, arms that differ, seeds.

    start: quickstart
    seeds: [0, 1, 2]
    run: {steps: 600, ...}
    arms:
      grpo: {}
      kl_cov: {set: {loss: {name: kl_cov}}, sweep: {loss.kl_cov_coef: [0.5, 1, 2]}}
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from pyrl.config import ConfigError, Fraction, Integer, Number, RunConfig, Section, load_tree, parse_config
from pyrl.quickstart.task import RingWalk

Seed = Annotated[Integer, Field(ge=0, lt=2**31)]
StartOf = Callable[[int], dict[str, Any]]
"""Seed -> what its start adds to the settings of its runs."""
OF_THE_STUDY = ("seed", "model", "data", "rollout", "deterministic", "parallel")
"""Sections on which all arms agree: they share one server, one model and one set of prompts."""


class ArmConfig(Section):
    """One method, or several that differ in one setting."""

    set: dict[str, Any] = Field(default={})
    """Settings in which it differs from `run`, as in a run's YAML."""
    sweep: dict[str, tuple[bool | int | float | str, ...]] = Field(default={}, max_length=1)
    """One dotted setting and its values: an arm each, named `ARM, SETTING=VALUE`."""
    seeds: tuple[Seed, ...] | None = None
    """None: the study's."""


class TaskConfig(Section):
    """The quickstart's task: walks on a ring with hidden gates."""

    places: Annotated[Integer, Field(ge=2, le=100)] = 24
    moves: Annotated[Integer, Field(ge=1, le=20)] = 4
    walls: Annotated[Integer, Field(ge=0, le=50)] = 3
    gates: Annotated[Integer, Field(ge=0, le=50)] = 4
    """Hidden gates, one for each of as many equal parts of the start places. 0: none."""
    slip: Fraction = 0.25
    """Probability that a demonstration states a place one too far."""
    supervised_loss: Annotated[Number, Field(gt=0.0)] | None = None
    """Nats a token at which fine-tuning on demonstrations ends. None: the quickstart's."""

    @model_validator(mode="after")
    def _has_answers(self) -> TaskConfig:
        self.ring_walk()
        return self

    def ring_walk(self) -> RingWalk:
        """Raises ValueError for a task in which a question could have no answer."""
        return RingWalk(self.places, self.moves, self.walls, self.gates, self.slip)


class StudyConfig(Section):
    start: Literal["quickstart"] | None = None
    """`quickstart`: for each seed make a task and the quickstart's model and fine-tune it; the runs of that seed start
    there. None: `run.model.path` and `run.data` say where."""
    task: TaskConfig = TaskConfig()
    """Of `start: quickstart`."""
    run: dict[str, Any]
    """What all runs share, as in a run's YAML."""
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    """Of sampling, of the order of prompts and of the start; a run for each arm and seed."""
    arms: dict[str, ArmConfig] = Field(min_length=1)
    baseline: str | None = None
    """Arm that the others are compared with. None: the first."""
    one_law: tuple[str, ...] = ()
    """Arms that are asked whether one (a, b) serves them all. Empty: every arm."""

    @model_validator(mode="after")
    def _task_is_used(self) -> StudyConfig:
        if self.start is None and self.task != TaskConfig():
            raise ValueError("task is of `start: quickstart`, which is not set")
        return self

    @model_validator(mode="after")
    def _names_are_arms(self) -> StudyConfig:
        for field, names in (("baseline", [self.baseline] if self.baseline else []), ("one_law", self.one_law)):
            for name in names:
                if name not in self.arms:
                    raise ValueError(f"{field} {name!r} is no arm: use one of {', '.join(self.arms)}")
        return self


@dataclass(frozen=True, slots=True)
class Arm:
    """One method with one choice of settings."""

    name: str
    method: str
    """Its name in the file, which arms of a sweep share."""
    swept: tuple[str, Any] | None
    """Dotted setting and its value."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    arm: Arm
    seed: int
    config: RunConfig
    folder: Path

    @property
    def title(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"


def load_study(path: Path, overrides: list[str]) -> StudyConfig:
    """Read a study's YAML; `overrides` are its own keys, as `run.steps=100`. Raises ConfigError."""
    tree = load_tree(path, overrides)
    try:
        return StudyConfig.model_validate(tree)
    except ValidationError as error:
        problems = "\n".join(f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}:\n{problems}") from error


def plan_runs(study: StudyConfig, folder: Path, start: StartOf) -> list[PlannedRun]:
    """Every run, the first seed of every arm first: whenever the study is cut off, arms have about as many seeds.

    `start`: model and data of a seed's start, merged into `run`. Raises ConfigError, naming the arm, for settings that
    a run could not have or that a study's runs share.
    """
    rows = []
    for method, arm in study.arms.items():
        for chosen, settings in _choices(method, arm):
            check_own_settings(chosen.name, settings)
            runs = [
                PlannedRun(
                    chosen,
                    seed,
                    parse_config(
                        merged(merged(study.run, start(seed)), settings) | {"seed": seed}, origin=f"arm {chosen.name}"
                    ),
                    folder / "runs" / folder_name(chosen.name) / f"seed_{seed}",
                )
                for seed in (study.seeds if arm.seeds is None else arm.seeds)
            ]
            rows.append(runs)
    return [run for of_round in zip_longest(*rows) for run in of_round if run is not None]


def check_own_settings(arm: str, settings: dict[str, Any]) -> None:
    """ConfigError for an arm that would change what all runs share."""
    for section in OF_THE_STUDY:
        if section in settings:
            raise ConfigError(
                f"arm {arm}: {section} is shared by all runs of a study, which use one server, model and data: move it "
                "to `run` (`seed`: to `seeds`), or make another study"
            )


def merged(tree: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`tree` with the values of `over`; sections are merged, but a `loss` of another name replaces the loss."""
    result = deepcopy(tree)
    for key, value in over.items():
        before = result.get(key)
        both = isinstance(value, dict) and isinstance(before, dict)
        other_loss = both and key == "loss" and value.get("name", before.get("name")) != before.get("name")
        if both and not other_loss:
            result[key] = merged(before, value)
        else:
            result[key] = deepcopy(value)
    return result


def folder_name(arm: str) -> str:
    """`kl_cov, loss.kl_cov_coef=0.5` -> `kl_cov-loss.kl_cov_coef-0.5`."""
    return arm.replace(", ", "-").replace("=", "-").replace("/", "-")


def _choices(method: str, arm: ArmConfig) -> list[tuple[Arm, dict[str, Any]]]:
    if not arm.sweep:
        return [(Arm(method, method, None), arm.set)]
    ((setting, values),) = arm.sweep.items()
    *parents, last = setting.split(".")
    choices = []
    for value in values:
        leaf: dict[str, Any] = {last: value}
        for parent in reversed(parents):
            leaf = {parent: leaf}
        settings = deepcopy(arm.set)
        _put(settings, leaf)
        choices.append((Arm(f"{method}, {setting}={value}", method, (setting, value)), settings))
    return choices


def _put(tree: dict[str, Any], leaf: dict[str, Any]) -> None:
    for key, value in leaf.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _put(tree[key], value)
        else:
            tree[key] = value
