"""The running fits against numpy on the whole history, what they refuse to say, and that a resume changes no bit."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest

from pyrl.telemetry.names import ENTROPY_PREDICTORS, METRICS
from pyrl.telemetry.running_fits import LAW_MIN_STEPS, MIN_MEASUREMENTS, RunningFits

STEPS = 60
NAME = ENTROPY_PREDICTORS[1]


def history(every: int = 2, *, noise: float = 1e-3, seed: int = 0) -> list[dict[str, Any]]:
    """A collapse that follows the law with a = 0.3, b = 0.9, and dH = -2 Cov plus noise, measured at every `every`-th
    step. One covariance is undefined at step 6."""
    rng = np.random.default_rng(seed)
    rows = []
    for step in range(1, STEPS + 1):
        entropy = 0.9 * math.exp(-step / 15) + 0.02
        covs = {f"cov_{name}": 0.02 * entropy * (1 + 0.3 * rng.normal()) for name in ENTROPY_PREDICTORS}
        change = -2 * covs[f"cov_{NAME}"] + 0.002 * rng.normal() if step % every == 0 else None
        if step == 6:
            covs[f"cov_{NAME}"] = None
        reward = -0.3 * math.exp(entropy) + 0.9 + noise * rng.normal()
        rows.append({"step": step, "entropy": entropy, "reward_mean": reward, "entropy_change_measured": change} | covs)
    return rows


def played(rows: list[dict[str, Any]], fits: RunningFits | None = None) -> list[dict[str, Any]]:
    fits = fits or RunningFits()
    return [row | fits.add(row) for row in rows]


@pytest.mark.parametrize("name", ENTROPY_PREDICTORS)
@pytest.mark.parametrize("steps", [12, STEPS])
def test_slope_and_correlations_equal_numpy(steps: int, name: str) -> None:
    rows = history()[:steps]
    last = played(rows)[-1]
    measured = [r for r in rows if r["entropy_change_measured"] is not None]
    pairs = [(r[f"cov_{name}"], -r["entropy_change_measured"]) for r in measured if r[f"cov_{name}"] is not None]
    x, y = np.array(pairs).T
    (slope,), *_ = np.linalg.lstsq(x[:, None], y, rcond=None)
    assert last[f"entropy_change_slope_{name}"] == pytest.approx(slope, rel=1e-12)
    assert last[f"entropy_change_correlation_{name}"] == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-10)
    later = [
        (before[f"cov_{name}"], -now["entropy_change_measured"])
        for before, now in itertools.pairwise(measured)
        if before[f"cov_{name}"] is not None
    ]
    wanted = np.corrcoef(*np.array(later).T)[0, 1] if len(later) >= MIN_MEASUREMENTS else None
    got = last[f"entropy_change_lag1_correlation_{name}"]
    assert got == (None if wanted is None else pytest.approx(wanted, rel=1e-10))
    assert last["entropy_change_measurements"] == len(measured) == steps // 2


def test_the_effective_learning_rate_is_found_and_positive() -> None:
    last = played(history())[-1]
    assert last[f"entropy_change_slope_{NAME}"] == pytest.approx(2, rel=0.1)
    assert last[f"entropy_change_correlation_{NAME}"] > 0.9


def test_a_prediction_knows_only_earlier_steps() -> None:
    rows = history()
    done = played(rows)
    for i, row in enumerate(done):
        slope = done[i - 1][f"entropy_change_slope_{NAME}"] if i else None
        predicted, cov = row[f"entropy_change_predicted_{NAME}"], row[f"cov_{NAME}"]
        assert predicted == (None if slope is None or cov is None else -slope * cov)
        others = [r | ({"entropy_change_measured": 99.0} if r["step"] >= row["step"] else {}) for r in rows]
        assert played(others)[i][f"entropy_change_predicted_{NAME}"] == predicted
    first = next(r["step"] for r in done if r[f"entropy_change_predicted_{NAME}"] is not None)
    assert first == 2 * (MIN_MEASUREMENTS + 1) + 1  # the undefined step counts for nothing


def test_the_law_equals_numpys_least_squares() -> None:
    rows = history(noise=0.01)
    for row in played(rows)[LAW_MIN_STEPS - 1 :]:
        so_far = rows[: row["step"]]
        x, y = np.exp([r["entropy"] for r in so_far]), np.array([r["reward_mean"] for r in so_far])
        slope, intercept = np.polyfit(x, y, 1)
        assert row["entropy_law_a"] == pytest.approx(-slope, rel=1e-9)
        assert row["entropy_law_b"] == pytest.approx(intercept, rel=1e-9)
        assert row["entropy_law_r2"] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, rel=1e-9)
        assert row["reward_ceiling_predicted"] == pytest.approx(intercept + slope, rel=1e-9)
        left = (x[-5:].mean() - 1) / (x[:5].mean() - 1)
        assert row["entropy_budget_left"] == pytest.approx(left, rel=1e-12)
        gain = slope + intercept - (intercept + slope * x[:5].mean())
        still = slope + intercept - (intercept + slope * x[-5:].mean())
        assert row["entropy_budget_left"] == pytest.approx(still / gain, rel=1e-9)  # the law's reward, said otherwise


LAW = ["entropy_law_a", "entropy_law_b", "entropy_law_r2", "entropy_budget_left", "reward_ceiling_predicted"]


def test_nothing_is_said_of_the_law_before_it_means_something() -> None:
    for row in played(history())[: LAW_MIN_STEPS - 1]:
        assert {row[name] for name in LAW} == {None}
    assert None not in {played(history())[LAW_MIN_STEPS - 1][name] for name in LAW}


@pytest.mark.parametrize("constant", ["entropy", "reward_mean"])
def test_a_constant_history_has_no_law(constant: str) -> None:
    rows = [row | {constant: 0.1} for row in history()]
    assert {played(rows)[-1][name] for name in LAW} == {None}


@pytest.mark.parametrize("reward", ["noise", "rises with entropy"])
def test_a_fit_that_is_not_the_law_predicts_no_ceiling(reward: str) -> None:
    rng = np.random.default_rng(1)
    rows = [r | {"reward_mean": rng.normal() if reward == "noise" else 0.3 * r["entropy"]} for r in history()]
    last = played(rows)[-1]
    assert last["entropy_law_r2"] < 0.5 if reward == "noise" else last["entropy_law_a"] < 0
    assert last["entropy_budget_left"] is None and last["reward_ceiling_predicted"] is None
    fits = RunningFits()
    assert not any(fits.is_nearly_spent(row | fits.add(row)) for row in rows)


def test_undefined_steps_are_left_out() -> None:
    rows = history()
    gaps = [{"entropy": None}, {"reward_mean": None}]
    with_gaps = [r for i, row in enumerate(rows) for r in (row, row | gaps[i % 2] | {"entropy_change_measured": None})]
    plain, gappy = played(rows)[-1], played(with_gaps)[-1]
    assert {name: gappy[name] for name in LAW} == {name: plain[name] for name in LAW}


def test_the_pairs_are_kept_for_a_full_fit() -> None:
    rows = history()
    rows[4] |= {"entropy": None}
    fits = RunningFits()
    played(rows, fits)
    kept = [row for row in rows if row["step"] != 5]
    assert fits.law.steps == [row["step"] for row in kept]
    assert fits.law.entropy == [row["entropy"] for row in kept]
    assert fits.law.reward == [row["reward_mean"] for row in kept]


@pytest.mark.parametrize("stop", [1, 7, 23, 45, 55])
def test_a_resumed_run_goes_on_to_the_bit(stop: int) -> None:
    rows, fits = history(), RunningFits()
    whole, looks = [], []
    for row in rows:
        whole.append(row | fits.add(row))
        looks.append(fits.is_nearly_spent(whole[-1]))
    first = RunningFits()
    for row in rows[:stop]:
        first.is_nearly_spent(row | first.add(row))
    second = RunningFits()
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert second == first
    for row, wanted, look in zip(rows[stop:], whole[stop:], looks[stop:], strict=True):
        done = row | second.add(row)
        assert done == wanted and second.is_nearly_spent(done) == look
    assert second == fits and sum(looks) >= 2


def looks_of(fits: RunningFits, rows: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in rows if fits.is_nearly_spent(row | fits.add(row))]


def test_the_law_is_looked_at_every_tenth_step_once_nine_tenths_are_spent() -> None:
    at = looks_of(RunningFits(), history())
    left = {row["step"]: row["entropy_budget_left"] for row in played(history())}
    assert left[at[0]] <= 0.1 and all(left[step] is None or left[step] > 0.1 for step in range(1, at[0]))
    assert len(at) >= 2 and set(np.diff(at)) == {10}


def test_a_long_run_takes_few_looks() -> None:
    """They grow apart by a twentieth of the steps: 5,000 steps cost less than a hundred full fits."""
    rows = [row | {"step": i} for i, row in enumerate(history() + history()[-1:] * 4940, start=1)]
    at = looks_of(RunningFits(), rows)
    assert len(at) < 100 and np.diff(at).min() == 10 and np.diff(at)[-1] > 200


def test_a_run_that_was_told_is_not_looked_at_again() -> None:
    fits = RunningFits()
    fits.noticed = True
    assert looks_of(fits, history()) == []
    held = [r | {"entropy": max(r["entropy"], 0.2)} for r in history()]
    assert looks_of(RunningFits(), held) == []


def test_every_field_is_in_the_table() -> None:
    assert set(played(history())[-1]) <= set(METRICS)
