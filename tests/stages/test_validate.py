"""Evaluation on held-out prompts: what is asked, and how it is averaged. The engine and the grader are scripted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyrl.config import ValidationConfig
from pyrl.stages.validate import Validator
from pyrl.telemetry.recorder import checked_record
from pyrl.telemetry.timers import Timers
from tests.stages.test_collect import PROMPTS, collector

LAST_STEP = 20


def validator(outcome: Callable[[int, int], str], failing: set[str] = frozenset(), **settings: int):
    made = collector(outcome, failing, dynamic_sampling={"enabled": True})
    config = ValidationConfig(**{"every": 1, "samples_per_prompt": 3, "max_prompts": 4, **settings})
    return Validator(config, PROMPTS, made, made._timers, last_step=LAST_STEP), made._engines


def recorded(reward: float | None, judged: int, unjudged: int) -> dict[str, object]:
    """The record of prompts that are all of one source."""
    by_source = {"toy": reward}
    return {"validation_reward_mean": reward, "validation_reward_by_source": by_source, "validation_n": judged,
            "validation_unjudged": unjudged}  # fmt: skip


def first_is_right(prompt: int, sample: int) -> str:
    return "right" if sample == 0 else "wrong"


def test_the_first_prompts_are_asked_with_the_policy_of_the_step() -> None:
    made, engine = validator(first_is_right)
    record = made.validate(7).metrics
    assert record == recorded(1 / 3, 12, 0)
    (job,) = engine.jobs
    assert [(number, prompt.id) for number, prompt in job.prompts] == [(0, "0"), (1, "1"), (2, "2"), (3, "3")]
    assert (job.samples, job.step, job.policy_version, job.purpose) == (3, 7, 7, "validation")
    made.validate(9)
    assert engine.jobs[1].prompts == job.prompts  # the same questions every time


def test_fewer_prompts_than_allowed() -> None:
    made, engine = validator(first_is_right, max_prompts=1000)
    assert made.validate(1).metrics["validation_n"] == 3 * len(PROMPTS)
    assert len(engine.jobs[0].prompts) == len(PROMPTS)


def test_groups_that_training_would_drop_count_here() -> None:
    """Dynamic sampling is on: all-right and all-wrong groups carry no signal, but they are the answer here."""
    record = validator(lambda prompt, sample: "right" if prompt < 3 else "wrong")[0].validate(1).metrics
    assert record == recorded(0.75, 12, 0)


def test_the_mean_is_over_judged_answers_not_over_prompts() -> None:
    def outcome(prompt: int, sample: int) -> str:
        if prompt == 0:
            return "unjudged" if sample else "right"
        return "wrong"

    record = validator(outcome, failing={"3"})[0].validate(1).metrics
    assert record == recorded(1 / 7, 7, 2)


def test_a_row_a_question_with_its_counts() -> None:
    def outcome(prompt: int, sample: int) -> str:
        return "unjudged" if sample == 2 else "right" if sample <= prompt else "wrong"

    rows = validator(outcome, failing={"1"})[0].validate(5).questions
    counts = [(row["prompt_id"], row["samples"], row["right"], row["unjudged"]) for row in rows]
    assert counts == [("0", 3, 1, 1), ("2", 3, 2, 1), ("3", 3, 2, 1)]
    assert {(row["step"], row["source"]) for row in rows} == {(5, "toy")}
    assert [row["reasons"] for row in rows] == [{"said_right": 1, "said_wrong": 1, "said_unjudged": 1}] + [
        {"said_right": 2, "said_unjudged": 1}] * 2  # fmt: skip


def test_the_last_step_has_samples_of_its_own_number() -> None:
    made, engine = validator(first_is_right, final_samples_per_prompt=8)
    assert [len(made.validate(step).questions) for step in (LAST_STEP - 1, LAST_STEP)] == [4, 4]
    assert [job.samples for job in engine.jobs] == [3, 8]
    assert validator(first_is_right)[0].validate(LAST_STEP).metrics["validation_n"] == 12


@pytest.mark.parametrize(("outcome", "failing", "unjudged"), [("unjudged", set(), 12), ("right", set("0123"), 0)])
def test_nothing_judged_is_undefined_and_recordable(outcome: str, failing: set[str], unjudged: int) -> None:
    record = validator(lambda prompt, sample: outcome, failing=failing)[0].validate(2).metrics
    assert record == recorded(None, 0, unjudged) | {"validation_reward_by_source": {} if failing else {"toy": None}}
    assert checked_record({"step": 2} | record)["validation_n"] == 0


def test_its_time_is_one_phase_and_none_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("pyrl.telemetry.timers.time.perf_counter", lambda: float(next(clock)))
    made, _ = validator(first_is_right)
    timers: Timers = made._timers
    timers.collect()
    made.validate(1)
    seconds = timers.collect()
    assert seconds["seconds_validation"] > 0
    assert seconds.keys() == {"seconds_step", "seconds_validation"}  # not seconds_rollout, not seconds_reward
