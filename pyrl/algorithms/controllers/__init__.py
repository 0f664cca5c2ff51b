"""Controllers: what sets `kl_cov_coef` or `clip_cov_ratio` anew each step, in place of a hand-tuned number.

    control = build_control(config.loss, config.entropy_control)
    loss = control.loss              # of this step
    metrics = control.observe(entropy)   # after it: `entropy_control_*`
    state["control"] = control.state_dict()

A controller is one file and one line of `CONTROLLERS`, chosen by `entropy_control.name`.
"""

from __future__ import annotations

from typing import Any, Protocol

from pyrl.algorithms.controllers.anneal import LinearAnneal
from pyrl.algorithms.controllers.pi import PIController
from pyrl.config import ControlConfig, LossConfig


class Controller(Protocol):
    value: float
    """Of the setting, for the coming step."""

    def observe(self, entropy: float | None) -> None:
        """Take in the entropy of the step that `value` was used in; None: unknown."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


CONTROLLERS: dict[str, type] = {"pi": PIController, "linear_anneal": LinearAnneal}
"""By `entropy_control.name`: made of (config, the setting's configured value)."""


class Control:
    """The loss of each step: as configured, but for the one setting that a controller drives, where there is one."""

    def __init__(self, loss: LossConfig, setting: str | None, controller: Controller | None) -> None:
        self._loss, self._setting, self._controller = loss, setting, controller

    @property
    def loss(self) -> LossConfig:
        """For the coming step."""
        if self._controller is None:
            return self._loss
        return self._loss.model_copy(update={self._setting: self._controller.value})

    def observe(self, entropy: float | None) -> dict[str, float]:
        """Take in the step's entropy. Returns the value that the step used, as the field of its record."""
        if self._controller is None:
            return {}
        used = self._controller.value
        self._controller.observe(entropy)
        return {"entropy_control_value": used}

    def state_dict(self) -> dict[str, Any]:
        return {} if self._controller is None else self._controller.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._controller is not None:
            self._controller.load_state_dict(state)


def build_control(loss: LossConfig, config: ControlConfig | None) -> Control:
    """Of a run; `config` None: the loss stays as configured."""
    if config is None:
        return Control(loss, None, None)
    setting = loss.controlled_setting
    return Control(loss, setting, CONTROLLERS[config.name](config, getattr(loss, setting)))
