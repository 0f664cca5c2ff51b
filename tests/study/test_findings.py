"""The numbers of a study's report, on records whose truth is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from pyrl.analysis.records import RunRecords, load_run
from pyrl.config import ConfigError
from pyrl.study.charts import steering_charts
from pyrl.study.config import load_study, plan_runs
from pyrl.study.findings import Findings, Interval, SteeringPoint, find, flatness, seed_interval
from pyrl.study.reached import Reached, reached
from pyrl.study.report import render_html, study_json, write_study_report
from pyrl.study.runner import is_done

STEPS = 240
STUDY = """
seeds: [0, 1, 2]
run: {model: {path: m}, data: {path: d}, steps: 240}
arms:
  grpo: {}
  kl_cov: {set: {loss: {name: kl_cov}}, sweep: {loss.kl_cov_coef: [1.0, 2.0]}}
"""
A, B = 0.4, 1.1


def curve(arm: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Entropy, which decays to a plateau of its own, and the reward that the law gives it."""
    plateau = {"grpo": 0.05, "kl_cov, loss.kl_cov_coef=1.0": 0.2, "kl_cov, loss.kl_cov_coef=2.0": 0.3}[arm]
    steps = np.arange(1, STEPS + 1)
    entropy = plateau * (1 + 0.1 * seed) + np.exp(-steps / 20)
    noise = 0.01 * np.random.default_rng(seed + len(arm)).standard_normal(STEPS)
    return entropy, B - A * np.exp(entropy) + noise


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run of the study, as records."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(STUDY)
    for run in plan_runs(load_study(folder / "study.yaml", []), folder, lambda seed: {}):
        run.folder.mkdir(parents=True)
        (run.folder / "config.yaml").write_text(run.config.to_yaml())
        entropy, reward = curve(run.arm.name, run.seed)
        rows = [
            {"step": i + 1, "entropy": h, "reward_mean": r, "validation_reward_mean": 0.5 if i + 1 == STEPS else None,
             "selected_tokens": 7 if "kl" in run.arm.name else None,
             "entropy_change_measured": -0.5 if i % 3 == 0 else None, "cov_token_logp_adv": i,
             "entropy_change_by_difficulty": {"0": 0.0, "1": -2.0 * (i % 3)},
             "cov_token_logp_adv_by_difficulty": {"0": 1.0, "1": 1.0 * (i % 3)}}
            for i, (h, r) in enumerate(zip(entropy, reward, strict=True))
        ]  # fmt: skip
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        right = [1, 4] if run.arm.name == "grpo" else [2, 4 - run.seed]
        questions = [
            {"step": step, "prompt_id": str(i), "source": "s", "samples": 5, "right": n, "unjudged": 1,
             "reasons": {"equal": n, "wrong": 4 - n, "timed out": 1}}
            for step in (STEPS // 2, STEPS)
            for i, n in enumerate(right)
        ]  # fmt: skip
        (run.folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return folder


@pytest.fixture(scope="module")
def findings(folder: Path) -> Findings:
    study = load_study(folder / "study.yaml", [])
    planned = plan_runs(study, folder, lambda seed: {})
    assert all(is_done(run) for run in planned)
    return find(study, planned, [])


def ends(arm: str, values: int) -> np.ndarray:
    return np.array([curve(arm, seed)[values][-STEPS // 10 :].mean() for seed in range(3)])


def test_arms_are_compared_with_the_baseline_by_seed(findings: Findings) -> None:
    assert [arm.arm for arm in findings.arms] == ["grpo", *(f"kl_cov, loss.kl_cov_coef={c}" for c in (1.0, 2.0))]
    grpo, kl_cov, _ = findings.arms
    assert grpo.entropy_ratio is None and grpo.reward_difference is None
    for number, own, difference in ((0, kl_cov.entropy, kl_cov.entropy_ratio), (1, kl_cov.reward,
                                                                              kl_cov.reward_difference)):  # fmt: skip
        first, second = ends(kl_cov.arm, number), ends("grpo", number)
        assert own.mean == pytest.approx(first.mean()) and own.n == 3
        first, second = (np.log(first), np.log(second)) if number == 0 else (first, second)
        interval = stats.ttest_rel(first, second).confidence_interval()
        bounds = [(first - second).mean(), interval.low, interval.high]
        bounds = np.exp(bounds) if number == 0 else bounds
        assert [difference.mean, difference.low, difference.high] == pytest.approx(bounds)
    assert kl_cov.selected_tokens == 7 and grpo.selected_tokens is None
    assert kl_cov.held_out_difference == Interval(0.0, 0.0, 0.0, 3)


def straight(folder: Path, label: str, entropy: np.ndarray, reward: np.ndarray) -> RunRecords:
    folder.mkdir()
    steps = range(1, entropy.size + 1)
    rows = [{"step": s, "entropy": h, "reward_mean": r} for s, h, r in zip(steps, entropy, reward, strict=True)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_run(folder, label)


def test_entropy_is_compared_where_each_run_first_has_the_reward(tmp_path: Path) -> None:
    """Reward (step - 1) / 299 is first above 0.6 in step 181, where the entropy 1 - 0.003 (step - 1) is 0.46. The
    baseline has it from step 101 on, with an entropy of 0.5 that ends at 0.05."""
    ramp = np.arange(300)
    falling = np.interp(ramp, [0, 100, 299], [1.0, 0.5, 0.05])
    baseline = straight(tmp_path / "a", "grpo, seed 0", falling, np.interp(ramp, [0, 100], [0.0, 0.6]))
    noise = np.where(ramp % 2 == 0, 0.3, -0.3)  # alone, step 2 would be high enough
    run = straight(tmp_path / "b", "kl_cov, seed 0", 1 - 0.003 * ramp, ramp / 299 + noise)
    found = reached(run, baseline)
    assert found.run == "kl_cov, seed 0" and found.reward == pytest.approx(0.6)
    assert found.step == pytest.approx(181, abs=3)
    assert found.entropy == pytest.approx(1 - 0.003 * (found.step - 1))
    itself = reached(baseline, baseline)
    assert itself.step == pytest.approx(126, abs=1)  # where all of the running mean's window is past step 101
    assert itself.entropy == pytest.approx(falling[125]) and itself.entropy_ratio == 1
    assert found.entropy_ratio == pytest.approx(found.entropy / falling[125])
    low = straight(tmp_path / "c", "rloo, seed 0", np.full(300, 0.5), np.full(300, 0.59))
    assert reached(low, baseline) == Reached("rloo, seed 0", found.reward, None, None, None)


def test_arms_say_how_much_entropy_is_left_at_the_baselines_reward(findings: Findings) -> None:
    """A plateau of more entropy ends with less reward by the same law, so these arms never get there."""
    assert [r.step for r in findings.reached] == [None] * 6
    assert all(arm.entropy_ratio_at_reward is None for arm in findings.arms)


def test_one_seed_has_no_interval() -> None:
    assert seed_interval([0.3]) == Interval(0.3, None, None, 1)


def test_pass_at_k_counts_judged_samples_of_the_last_step(findings: Findings) -> None:
    """4 judged of 5. 1 right of 4: 1/4, 1 - 3/6, 1; 4 right of 4: always."""
    found = findings.arms[0].pass_at_k
    assert {k: interval.mean for k, interval in found.items()} == pytest.approx({1: 0.625, 2: 0.75, 4: 1.0})
    assert findings.arms[0].pass_difference == {}


def test_pass_at_k_has_its_interval_over_seeds_and_pairs_them(findings: Findings) -> None:
    """2 right of 4 in one question; 4, 3, 2 of 4 in the other."""
    kl_cov = findings.arms[1]
    assert set(kl_cov.pass_at_k) == set(kl_cov.pass_difference) == {1, 2, 4}
    of_seeds = [(2 + right) / 8 for right in (4, 3, 2)]
    low, high = stats.t.interval(0.95, 2, np.mean(of_seeds), np.std(of_seeds, ddof=1) / 3**0.5)
    found = kl_cov.pass_at_k[1]
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((np.mean(of_seeds), low, high, 3))
    assert kl_cov.pass_difference[1].mean == pytest.approx(np.mean(of_seeds) - 0.625)
    assert kl_cov.pass_difference[1].low == pytest.approx(low - 0.625)


def test_collapse_is_read_at_a_twelfth_and_a_third(findings: Findings) -> None:
    found = findings.collapse[0]
    entropy, _ = curve("grpo", 0)
    start, end = entropy[:5].mean(), entropy[-24:].mean()
    for label, place in (("1/12", 20), ("1/3", 80)):
        expected = (start - entropy[place - 10 : place + 10].mean()) / (start - end)
        assert found.entropy_consumed[label] == pytest.approx(expected)
    assert found.entropy_consumed["1/12"] < found.entropy_consumed["1/3"] < 1
    assert found.gain_reached["1/3"] == pytest.approx(1, abs=0.05)


def test_the_law_is_fitted_to_arms_that_are_not_swept(findings: Findings) -> None:
    assert [run.label for run in findings.law.runs] == [f"grpo, seed {seed}" for seed in range(3)]
    for run in findings.law.runs:
        assert (run.law.a, run.law.b) == pytest.approx((A, B), abs=0.02)


@pytest.mark.parametrize(("per_100", "flat"), [(0.02, False), (-0.02, False), (0.0, True)])
def test_flatness_tells_a_slope_from_noise(tmp_path: Path, per_100: float, flat: bool) -> None:
    """The first 50 of 250 steps rise steeply and do not count."""
    steps = np.arange(250)
    noise = 0.02 * np.random.default_rng(1).standard_normal(250)
    reward = np.where(steps < 50, steps / 100, 0.5) + per_100 / 100 * steps + noise
    rows = [{"step": int(i), "reward_mean": float(r)} for i, r in zip(steps, reward, strict=True)]
    found = flatness(RunRecords("run", tmp_path, rows, {}))
    slope = stats.linregress(np.arange(200), reward[50:])
    assert found.steps == 200 and found.flat is flat
    assert found.slope_per_100_steps == pytest.approx(100 * slope.slope)
    assert found.standard_error == pytest.approx(100 * slope.stderr, rel=0.3)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_run_too_short_for_a_slope_has_none(tmp_path: Path, steps: int) -> None:
    rows = [{"step": i + 1, "reward_mean": 0.1 * i} for i in range(steps)]
    found = flatness(RunRecords("run", tmp_path, rows, {}))
    assert (found.steps, found.slope_per_100_steps, found.standard_error, found.flat) == (steps, None, None, None)


def test_cause_by_difficulty(findings: Findings) -> None:
    """dH = -2 Cov in one group, and nothing moves in the other."""
    found = {(c.arm, c.difficulty): c for c in findings.causes}
    one, other = found["grpo", "1"], found["grpo", "0"]
    assert (one.steps, one.entropy_change, one.covariance) == (3 * STEPS, -2.0, 1.0)
    assert one.correlation == pytest.approx(1.0) and other.correlation is None


def test_steering_has_a_point_for_each_value(findings: Findings) -> None:
    assert [(p.arm, p.setting, p.value) for p in findings.steering] == [
        ("kl_cov", "loss.kl_cov_coef", 1.0), ("kl_cov", "loss.kl_cov_coef", 2.0),
    ]  # fmt: skip
    assert [p.entropy.mean for p in findings.steering] == pytest.approx(
        [ends(f"kl_cov, loss.kl_cov_coef={c}", 0).mean() for c in (1.0, 2.0)]
    )
    assert [p.selected_tokens for p in findings.steering] == [7.0, 7.0]


@pytest.mark.parametrize(
    ("values", "scale", "places"),
    [
        ([0.0, 0.1, 0.4], "linear", [0.0, 0.1, 0.4]),
        ([16384, 16], "log", [16384, 16]),
        (["mini_batch", "micro_batch"], "linear", [0, 1]),
        ([True, False], "linear", [0, 1]),
    ],
)
def test_swept_values_have_their_places(values: list[Any], scale: str, places: list[float]) -> None:
    end = Interval(0.5, None, None, 1)
    points = [SteeringPoint("one", "a.b", value, end, end, 10.0 * i) for i, value in enumerate(values)]
    points += [SteeringPoint("other", "a.b", values[-1], end, end, None)]
    chart = next(c for c in steering_charts(points) if c.title == "Selected over b")
    axes = Figure().add_subplot()
    chart.draw(axes)
    (line,) = axes.lines
    assert (axes.get_xscale(), list(line.get_xdata())) == (scale, places)
    assert list(line.get_ydata()) == [10.0 * i for i in range(len(values))]


def test_nothing_selected_has_no_chart() -> None:
    end = Interval(0.5, None, None, 1)
    charts = steering_charts([SteeringPoint("clip", "a.b", value, end, end, None) for value in (1, 2)])
    assert [chart.title for chart in charts] == ["Entropy over b"]


def test_the_page_stands_alone_and_the_numbers_are_json(findings: Findings) -> None:
    page = render_html(findings)
    assert "kl_cov, loss.kl_cov_coef=2.0" in page and "pass@4" in page and "mathdefault" not in page
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")
    numbers = json.loads(json.dumps(study_json(findings), allow_nan=False))
    assert numbers["arms"][1]["entropy"]["mean"] == findings.arms[1].entropy.mean and numbers["missing_runs"] == []


def test_only_what_is_done_is_reported(folder: Path, tmp_path: Path) -> None:
    study = load_study(folder / "study.yaml", [])
    assert write_study_report(study, tmp_path) == []
    longer = load_study(folder / "study.yaml", ["run.steps=300"])
    assert not any(is_done(run) for run in plan_runs(longer, folder, lambda seed: {}))
    paths = write_study_report(study, folder)
    assert [path.name for path in paths] == ["report.html", "report.png", "study.json"]
    assert paths[1].read_bytes().startswith(b"\x89PNG")


def test_the_data_beside_the_report_give_its_tables_again(folder: Path, findings: Findings) -> None:
    study = load_study(folder / "study.yaml", [])
    (folder / "curves").mkdir(exist_ok=True)
    (folder / "curves" / "of_an_older_report.csv").write_text("step\n")
    write_study_report(study, folder)
    curves = {path.stem: read_csv(path) for path in (folder / "curves").iterdir()}
    assert sorted(curves) == sorted(f"{run.folder.parent.name}-seed_{run.seed}" for run in findings.done)
    for run in findings.done:
        rows = curves[f"{run.folder.parent.name}-seed_{run.seed}"]
        entropy, reward = curve(run.arm.name, run.seed)
        assert [float(row["entropy"]) for row in rows] == pytest.approx(entropy, rel=1e-3)
        assert [float(row["reward_mean"]) for row in rows] == pytest.approx(reward, rel=1e-3)
        measured = rows[::3]
        assert [row["cov_token_logp_adv"] for row in measured] == [str(3 * i) for i in range(len(measured))]
        assert {row["entropy_change_by_difficulty 1"] for row in measured} == {"-0"}
        assert {row["cov_token_logp_adv"] + row["entropy_change_by_difficulty 1"] for row in rows[1::3]} == {""}
    for arm in findings.arms:
        name = next(run.folder.parent.name for run in findings.done if run.arm.name == arm.arm)
        rows = [row for seed in arm.seeds for row in read_csv(folder / "held_out" / f"seed_{seed}.csv")]
        shares = [int(row[f"{name} right"]) / int(row[f"{name} judged"]) for row in rows]
        assert np.mean(shares) == pytest.approx(arm.pass_at_k[1].mean)
        assert rows[0][f"{name} reasons"].split(" timed out:")[1] == "1" and rows[0]["source"] == "s"


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_of_other_settings_is_refused(folder: Path) -> None:
    other = load_study(folder / "study.yaml", ["run.optimizer.lr=0.5"])
    with pytest.raises(ConfigError, match=r"holds a run with other settings of optimizer\.lr: restore them"):
        is_done(plan_runs(other, folder, lambda seed: {})[0])


def test_a_run_of_more_steps_is_not_taken_for_one_of_fewer(folder: Path) -> None:
    shorter = load_study(folder / "study.yaml", ["run.steps=3"])
    with pytest.raises(ConfigError, match="holds a run with other settings of steps: restore them"):
        is_done(plan_runs(shorter, folder, lambda seed: {})[0])
