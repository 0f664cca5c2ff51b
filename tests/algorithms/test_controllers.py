"""Controllers of the entropy: bounded whatever comes, no wind-up, the right direction, and a resume to the bit."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrl.algorithms.controllers import CONTROLLERS, build_control
from pyrl.algorithms.controllers.anneal import LinearAnneal
from pyrl.algorithms.controllers.pi import PIController
from pyrl.config import ClipCov, ConfigError, KLCov, LinearAnnealControl, PIControl, RunConfig, parse_config

REQUIRED = {"model": {"path": "m"}, "data": {"path": "d"}}
PI = {"name": "pi", "target": 0.3, "lowest": 0.01, "highest": 10.0}
entropies = st.lists(st.floats(0.0, 50.0), max_size=60)
gains = st.floats(0.0, 20.0)


def pi(start: float = 1.0, **changes: float) -> PIController:
    return PIController(PIControl(**(PI | changes)), start)


@given(entropies, gains, gains, st.sampled_from([0.01, 0.5, 10.0]))
@settings(deadline=None)
def test_the_setting_stays_within_its_bounds(seen: list[float], kp: float, ki: float, start: float) -> None:
    controller = pi(start, kp=kp, ki=ki)
    assert controller.value == start
    for entropy in seen:
        controller.observe(entropy)
        assert 0.01 <= controller.value <= 10.0


@given(st.integers(1, 2000), gains.filter(lambda g: g > 0.01), st.sampled_from([(0.0, 1e9), (1e9, 0.0)]))
@settings(deadline=None)
def test_no_wind_up(steps: int, ki: float, ends: tuple[float, float]) -> None:
    """However long one side lasts, the setting leaves its bound after as many steps of the other side as its way from
    bound to bound takes at this gain."""
    controller = pi(kp=0.0, ki=ki)
    for _ in range(steps):
        controller.observe(ends[0])
    before = controller.value
    controller.observe(ends[1])
    assert controller.value < before if ends[0] == 0.0 else controller.value > before
    for _ in range(math.ceil(math.log(10.0 / 0.01) / ki)):
        controller.observe(ends[1])
    assert controller.value == pytest.approx(0.01 if ends[0] == 0.0 else 10.0)


@given(entropies, st.floats(0.0, 5.0), st.floats(0.0, 5.0))
@settings(deadline=None)
def test_less_entropy_never_asks_for_less(seen: list[float], one: float, other: float) -> None:
    first, second = pi(), pi()
    for entropy in seen:
        first.observe(entropy)
        second.observe(entropy)
    first.observe(min(one, other))
    second.observe(max(one, other))
    assert first.value >= second.value


def test_by_hand() -> None:
    """H = 0.15 of 0.3: e = 1/2. Then H = 0.33: e = -0.1."""
    controller = pi(2.0, kp=1.0, ki=0.1)
    controller.observe(0.15)
    assert controller.value == pytest.approx(2.0 * math.exp(0.5 + 0.05))
    controller.observe(None)
    assert controller.value == pytest.approx(2.0 * math.exp(0.55))
    controller.observe(0.33)
    assert controller.value == pytest.approx(2.0 * math.exp(-0.1 + 0.05 - 0.01))


def test_it_holds_the_target_of_a_policy_whose_entropy_leaks() -> None:
    """A plant: each step loses 5% of its entropy and gains in proportion to the setting."""
    entropy, controller = 1.0, pi(0.5, kp=1.0, ki=0.1)
    for _ in range(400):
        entropy += -0.05 * entropy + 0.01 * controller.value
        controller.observe(entropy)
    assert entropy == pytest.approx(0.3, rel=1e-3) and controller.value == pytest.approx(1.5, rel=1e-2)


@given(st.integers(0, 40), st.integers(1, 20), st.floats(0.0, 1.0))
@settings(deadline=None)
def test_annealing_is_a_line_to_the_lowest(steps: int, anneal_steps: int, lowest: float) -> None:
    settings_ = LinearAnnealControl(name="linear_anneal", anneal_steps=anneal_steps, lowest=lowest)
    controller = LinearAnneal(settings_, 2.0)
    for _ in range(steps):
        controller.observe(0.1)
    assert controller.value == pytest.approx(max(lowest, 2.0 - 2.0 * steps / anneal_steps))


@pytest.mark.parametrize("control", [PI, {"name": "linear_anneal", "anneal_steps": 7}], ids=lambda c: c["name"])
def test_a_resumed_controller_goes_on_to_the_bit(control: dict[str, Any]) -> None:
    config = parse_config(REQUIRED | {"loss": {"name": "kl_cov"}, "entropy_control": control})

    def run(made: Any, seen: list[float]) -> list[dict[str, float]]:
        return [made.observe(entropy) for entropy in seen]

    unbroken, broken, resumed = (build_control(config.loss, config.entropy_control) for _ in range(3))
    first, second = [0.9, 0.4, 0.1], [0.05, 0.7, 0.2]
    expected = run(unbroken, first + second)
    assert run(broken, first) == expected[:3]
    resumed.load_state_dict(json.loads(json.dumps(broken.state_dict())))
    assert run(resumed, second) == expected[3:] and resumed.loss == unbroken.loss
    assert len({row["entropy_control_value"] for row in expected}) == 6


def test_it_drives_the_one_setting_of_the_method_and_records_it() -> None:
    for loss, name in ((KLCov(name="kl_cov"), "kl_cov_coef"), (ClipCov(name="clip_cov"), "clip_cov_ratio")):
        control = build_control(loss, LinearAnnealControl(name="linear_anneal", anneal_steps=2))
        start = getattr(loss, name)
        assert control.loss == loss
        assert control.observe(0.5) == {"entropy_control_value": start}
        assert control.loss == loss.model_copy(update={name: start / 2})
        assert control.observe(0.5) == {"entropy_control_value": start / 2}
    alone = build_control(loss, None)
    assert alone.loss is loss and alone.observe(0.5) == {} == alone.state_dict()


def test_every_configured_controller_is_registered() -> None:
    named = {
        parse_config(REQUIRED | {"loss": {"name": "kl_cov"}, "entropy_control": tree}).entropy_control.name
        for tree in (PI, {"name": "linear_anneal", "anneal_steps": 7})
    }
    assert named == CONTROLLERS.keys()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"entropy_control": PI}, "entropy_control drives clip_cov or kl_cov, and loss.name is ppo_clip"),
        ({"loss": {"name": "kl_cov", "kl_cov_coef": 20}, "entropy_control": PI},
         r"loss\.kl_cov_coef 20\.0, where entropy_control starts, is not between its lowest 0\.01 and highest 10\.0"),
        ({"loss": {"name": "clip_cov"}, "entropy_control": PI}, r"loss\.clip_cov_ratio 0\.0002, where"),
        ({"loss": {"name": "clip_cov", "clip_cov_ratio": 0.1}, "entropy_control": PI},
         r"entropy_control\.highest 10\.0: clip_cov_ratio is a fraction"),
        ({"loss": {"name": "kl_cov"}, "entropy_control": PI | {"target": 0}}, "entropy_control"),
        ({"loss": {"name": "kl_cov"}, "entropy_control": PI | {"name": "pid"}}, "entropy_control"),
        ({"loss": {"name": "kl_cov", "first_update": "unpenalized"}, "algorithm": {"updates_per_rollout": 1}},
         "KL-Cov would do nothing; use subgradient, or more updates"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(REQUIRED | sections)


def test_kl_cov_acts_in_a_single_update_unless_told_otherwise() -> None:
    def first_update(updates: int) -> str:
        tree = REQUIRED | {"loss": {"name": "kl_cov"}, "algorithm": {"updates_per_rollout": updates}}
        config = parse_config(tree)
        assert RunConfig.model_validate(config.model_dump(mode="json")) == config
        return config.loss.first_update

    assert [first_update(updates) for updates in (1, 2)] == ["subgradient", "unpenalized"]
