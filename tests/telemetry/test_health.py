"""Faults of a run, on records of a known course."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from pyrl.config import RunConfig, parse_config
from pyrl.telemetry.health import WINDOW, ZERO_STEPS, Health

VOCABULARY = 50


def config(**rollout: Any) -> RunConfig:
    tree = {"model": {"path": "m"}, "data": {"path": "d"}, "rollout": {"prompts_per_step": 32} | rollout}
    return parse_config(tree, origin="test")


def course(steps: int, **changes: Any) -> list[dict[str, Any]]:
    """Records of a run that learns; `changes`: field -> a value, or one a step."""
    noise = np.random.default_rng(0).standard_normal((steps, 2))
    fields = {
        "step": np.arange(1, steps + 1),
        "entropy": 0.1 + 1.3 * np.exp(-np.arange(steps) / 30) + 0.005 * noise[:, 0],
        "reward_mean": 0.7 - 0.6 * np.exp(-np.arange(steps) / 40) + 0.02 * noise[:, 1],
        "truncated_fraction": 0.02,
        "approx_kl": 0.01,
        "grad_norm": 0.5,
        "groups_kept": 32,
        "groups_dropped_uniform": 0,
        "groups_dropped_unjudged": 0,
        "groups_failed": 0,
        "rollout_logprobs_nonfinite": 0,
    }
    columns = {name: np.broadcast_to(changes.get(name, value), steps).tolist() for name, value in fields.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def alarms(records: list[dict[str, Any]], health: Health | None = None) -> tuple[dict[str, list[int]], list[str]]:
    """(fault -> steps in which it holds, all messages)"""
    health = health or Health(config(), vocabulary=VOCABULARY)
    held: dict[str, list[int]] = {}
    said = []
    for record in records:
        for name, value in health.add(record)["alarms"].items():
            assert value == 1
            held.setdefault(name, []).append(record["step"])
        said += health.messages
    return held, said


def test_a_run_that_learns_is_left_alone() -> None:
    assert alarms(course(400)) == ({}, [])


@pytest.mark.parametrize(
    ("reward", "cause"),
    [(0.0, "no response was right"), (1.0, "every response was right"), (0.5, "one reward throughout")],
)
def test_a_gradient_of_zero_names_its_cause(reward: float, cause: str) -> None:
    held, said = alarms(course(ZERO_STEPS + 2, grad_norm=0.0, reward_mean=reward))
    assert held == {"zero_gradient": [ZERO_STEPS, ZERO_STEPS + 1, ZERO_STEPS + 2]}
    assert len(said) == 1 and said[0].startswith(f"step {ZERO_STEPS}: ") and cause in said[0]


def test_a_tiny_gradient_or_a_pause_in_it_is_none_of_zero() -> None:
    assert alarms(course(20, grad_norm=1e-30)) == ({}, [])
    assert alarms(course(20, grad_norm=[0.0, 0.0, 0.0, 0.0, 0.1] * 4)) == ({}, [])


def test_responses_that_are_all_cut_off() -> None:
    held, said = alarms(course(3, truncated_fraction=[1.0, 0.99, 1.0]))
    assert held == {"all_truncated": [1, 3]}
    assert len(said) == 1 and "rollout.max_response_tokens 1024" in said[0]


def test_truncation_is_a_fault_where_entropy_rises_from_its_lowest() -> None:
    falling = np.linspace(1.0, 0.4, 30)
    rising = np.concatenate([falling, np.linspace(0.4, 0.8, 30)])
    held, said = alarms(course(60, entropy=rising, truncated_fraction=0.5))
    assert list(held) == ["truncated_and_rising_entropy"] and held["truncated_and_rising_entropy"][0] > 30 + WINDOW // 2
    assert len(said) == 1 and "50%" in said[0]
    assert alarms(course(30, entropy=falling, truncated_fraction=0.5)) == ({}, [])
    assert alarms(course(60, entropy=rising, truncated_fraction=0.1)) == ({}, [])


def test_entropy_that_rises_while_the_reward_falls() -> None:
    reward = np.concatenate([np.linspace(0.2, 0.6, 40), np.linspace(0.6, 0.3, 40)])
    entropy = np.concatenate([np.linspace(1.0, 0.5, 40), np.linspace(0.5, 1.0, 40)])
    held, said = alarms(course(80, reward_mean=reward, entropy=entropy))
    assert list(held) == ["rising_entropy_and_falling_reward"] and len(said) == 1
    assert min(held["rising_entropy_and_falling_reward"]) > 50
    assert alarms(course(80, reward_mean=reward, entropy=0.5)) == ({}, [])
    assert alarms(course(80, reward_mean=[*reward[:40], *[0.6] * 40], entropy=entropy)) == ({}, [])


@pytest.mark.parametrize(
    ("name", "value"), [("reward_mean", 0.0), ("entropy", 1e-4), ("entropy", 0.99 * math.log(VOCABULARY))]
)
def test_an_update_that_breaks_the_policy(name: str, value: float) -> None:
    """approx_kl leaps in step 30; the next rollout shows what became of the policy."""
    records = course(31, approx_kl=[0.01] * 29 + [40.0, 0.01])
    assert alarms(records) == ({}, [])
    records[-1][name] = value
    held, said = alarms(records)
    assert held == {"broken_policy": [31]}
    assert "approx_kl leapt to 40 nats" in said[0] and "optimizer.lr, now 1e-06" in said[0]
    for record in records:
        record["approx_kl"] = 0.01
    assert alarms(records) == ({}, [])


def test_steps_with_fewer_groups_than_asked() -> None:
    records = course(4, groups_kept=[32, 20, 30, 32], groups_failed=[0, 5, 0, 0], groups_dropped_uniform=[3, 9, 2, 1])
    sampling = {"enabled": True, "max_refills": 3}
    held, said = alarms(records, Health(config(dynamic_sampling=sampling), vocabulary=VOCABULARY))
    assert held == {"fewer_groups": [2, 3]}
    assert len(said) == 1 and "20 of 32 groups (9 all right or all wrong, 5 without an answer)" in said[0]
    assert alarms(records) == ({}, [])


def test_a_reward_that_never_was_there_cannot_fall() -> None:
    rising = np.linspace(0.5, 1.0, 60)
    assert alarms(course(60, reward_mean=0.0, entropy=rising)) == ({}, [])
    assert alarms(course(60, reward_mean=np.linspace(0.004, 0.001, 60), entropy=rising)) == ({}, [])


def test_log_probs_that_are_not_finite() -> None:
    held, said = alarms(course(4, rollout_logprobs_nonfinite=[0, 3, 0, 1]))
    assert held == {"nonfinite_rollout_logprobs": [2, 4]}
    assert len(said) == 1 and said[0].startswith("step 2: 3 tokens came with a log-prob")


def test_a_resumed_run_goes_on_where_it_was() -> None:
    """Through JSON, at every step: the same alarms, and none said twice."""
    reward = np.concatenate([np.linspace(0.2, 0.6, 40), np.linspace(0.6, 0.3, 40)])
    entropy = np.concatenate([np.linspace(1.0, 0.5, 40), np.linspace(0.5, 1.0, 40)])
    records = course(80, reward_mean=reward, entropy=entropy, truncated_fraction=[0.1] * 70 + [1.0] * 10)
    unbroken = alarms(records)
    assert len(unbroken[0]) == len(unbroken[1]) == 3
    for cut in (7, 45, 62, 75):
        first, second = (Health(config(), vocabulary=VOCABULARY) for _ in range(2))
        held, said = alarms(records[:cut], first)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        later, said_later = alarms(records[cut:], second)
        assert {name: held.get(name, []) + later.get(name, []) for name in held | later} == unbroken[0]
        assert said + said_later == unbroken[1]

