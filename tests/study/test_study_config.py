"""What a study plans, and what it refuses before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pyrl.config import ConfigError
from pyrl.quickstart.run import METHODS, method_configs
from pyrl.study.config import PlannedRun, StudyConfig, load_study, merged, plan_runs
from pyrl.study.start import make_start, start_settings

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "study").glob("*.yaml"))
RUN = {"model": {"path": "m"}, "data": {"path": "d"}, "steps": 10}


def plan(folder: Path, *overrides: str, **study: Any) -> list[PlannedRun]:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"run": RUN, **study}))
    return plan_runs(load_study(path, list(overrides)), folder, lambda seed: {})


def test_the_first_seed_of_every_arm_comes_first(tmp_path: Path) -> None:
    kl_cov = {"set": {"loss": {"name": "kl_cov"}}, "sweep": {"loss.kl_cov_coef": [0.5, 2]}, "seeds": [7]}
    runs = plan(tmp_path, seeds=[0, 1], arms={"grpo": {}, "kl_cov": kl_cov})
    assert [run.title for run in runs] == [
        "grpo, seed 0", "kl_cov, loss.kl_cov_coef=0.5, seed 7", "kl_cov, loss.kl_cov_coef=2, seed 7", "grpo, seed 1",
    ]  # fmt: skip
    assert [run.config.seed for run in runs] == [0, 7, 7, 1]
    assert [run.config.loss.name for run in runs] == ["ppo_clip", "kl_cov", "kl_cov", "ppo_clip"]
    assert [run.config.loss.kl_cov_coef for run in runs[1:3]] == [0.5, 2.0]
    assert {run.config.steps for run in runs} == {10} and len({run.folder for run in runs}) == 4
    assert all(run.folder.resolve().is_relative_to(tmp_path) for run in runs)


def test_overrides_are_of_the_study(tmp_path: Path) -> None:
    runs = plan(tmp_path, "run.steps=3", "arms.grpo.seeds=[4, 5]", arms={"grpo": {}})
    assert [(run.config.steps, run.seed) for run in runs] == [(3, 4), (3, 5)]


def test_another_loss_replaces_the_loss_and_the_same_one_is_changed() -> None:
    shared = {"loss": {"name": "kl_cov", "kl_cov_ratio": 0.1}, "rollout": {"threads": 1}}
    assert merged(shared, {"loss": {"name": "clip_higher"}})["loss"] == {"name": "clip_higher"}
    assert merged(shared, {"loss": {"kl_cov_coef": 2}})["loss"] == {**shared["loss"], "kl_cov_coef": 2}
    assert merged(shared, {"rollout": {"tp": 2}}) == {**shared, "rollout": {"threads": 1, "tp": 2}}
    assert shared["loss"] == {"name": "kl_cov", "kl_cov_ratio": 0.1}


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"arms": {}}, "arms: Dictionary should have at least 1 item"),
        ({"arms": {"grpo": {}}, "seeds": []}, "seeds: Tuple should have at least 1 item"),
        ({"arms": {"grpo": {}}, "baseline": "gpro"}, "baseline 'gpro' is no arm: use one of grpo"),
        ({"arms": {"grpo": {}}, "one_law": ["rloo"]}, "one_law 'rloo' is no arm"),
        ({"arms": {"grpo": {"sets": {}}}}, "arms.grpo.sets: Extra inputs are not permitted"),
        ({"arms": {"grpo": {}, "x": {"set": {"loss": {"name": "klcov"}}}}}, r"arm x:\s+loss"),
        ({"arms": {"x": {"set": {"loss": {"name": "kl_cov", "kl_cov_rato": 1}}}}}, "did you mean 'kl_cov_ratio'"),
        ({"arms": {"x": {"set": {"rollout": {"tp": 2}}}}}, "arm x: rollout is shared by all runs of a study"),
        ({"arms": {"x": {"sweep": {"seed": [1, 2]}}}}, r"arm x, seed=1: seed is shared .* \(`seed`: to `seeds`\)"),
        ({"arms": {"x": {"sweep": {"loss.a": [1], "loss.b": [2]}}}}, "arms.x.sweep: Dictionary should have at most 1"),
    ],
)
def test_a_bad_arm_is_named_before_anything_runs(tmp_path: Path, study: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, **study)


def test_the_start_may_not_be_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"start": "quickstart", "run": RUN, "arms": {"grpo": {}}}))
    with pytest.raises(ConfigError, match=r"run\.model\.path: `start: quickstart` makes it"):
        start_settings(load_study(path, []), tmp_path)


def quickstart_study(tmp_path: Path, **task: Any) -> StudyConfig:
    run = {key: value for key, value in RUN.items() if key not in ("model", "data")}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"start": "quickstart", "task": task, "run": run, "arms": {"grpo": {}}}))
    return load_study(path, [])


def test_the_start_of_another_task_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "start"
    (folder / "seed_1").mkdir(parents=True)
    (folder / "seed_1" / "task.yaml").write_text(yaml.safe_dump({"walls": 2, "gates": 0}))
    start = start_settings(quickstart_study(tmp_path, walls=2, gates=0), folder)
    assert [start(seed)["model"]["path"] for seed in (1, 2)] == [str(folder / f"seed_{n}/supervised") for n in (1, 2)]
    for other in ({}, {"walls": 2}, {"walls": 2, "gates": 0, "supervised_loss": 1.0}):
        with pytest.raises(ConfigError, match="holds the start of another task"):
            start_settings(quickstart_study(tmp_path, **other), folder)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"places": 7}, "places 7: 4 moves past 3 walls need 8"),
        ({"gates": 5}, "gates 5: want 0 or a divisor of places 24"),
        ({"slip": 2}, r"task\.slip"),
        ({"supervised_loss": 0.0}, r"task\.supervised_loss"),
    ],
)
def test_an_impossible_task_is_refused(tmp_path: Path, task: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quickstart_study(tmp_path, **task)


def test_a_task_with_too_few_questions_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    study = quickstart_study(tmp_path, places=6, moves=2, walls=0, gates=0)
    with pytest.raises(ConfigError, match="task: 8200 prompts: the task has not so many different questions; found 30"):
        make_start(study, tmp_path / "start", seed=3)
    assert not list(tmp_path.glob("start/*"))


def test_a_task_needs_its_start(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"task": {"walls": 2}, "run": RUN, "arms": {"grpo": {}}}))
    with pytest.raises(ConfigError, match="task is of `start: quickstart`, which is not set"):
        load_study(path, [])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_committed_study_is_valid(tmp_path: Path, path: Path) -> None:
    study = load_study(path, [])
    given = {} if study.start else {"model": {"path": "m"}, "data": {"path": "d", "validation_path": "v"}}
    start = start_settings(study, tmp_path / "start")
    runs = plan_runs(study, tmp_path, lambda seed: start(seed) | given)
    assert len({run.folder for run in runs}) == len(runs) >= 2
    assert all(run.config.checkpoint.every for run in runs), "an interrupted run could not go on"


def test_the_paper_study_trains_as_the_quickstart_does(tmp_path: Path) -> None:
    """Its table of seeds is the quickstart's: what differs is how much is measured and kept."""
    study = load_study(CONFIGS[0].with_name("paper.yaml"), [])
    start = start_settings(study, tmp_path)
    runs = {run.arm.name: run.config for run in plan_runs(study, tmp_path, start) if run.seed == 7}
    for method, config in method_configs(Path("configs/quickstart.yaml"), ["seed=7"], tmp_path, list(METHODS)).items():
        one, other = (c.model_dump(mode="json") for c in (runs[method], config))
        assert {key for key in one if one[key] != other[key]} <= {
            "model", "data", "validation", "checkpoint", "instruments",
        }  # fmt: skip
        for section in ("model", "data"):
            paths = {"path", "validation_path"}
            assert {k: v for k, v in one[section].items() if k not in paths} == {
                k: v for k, v in other[section].items() if k not in paths
            }


def test_there_are_studies() -> None:
    assert CONFIGS
