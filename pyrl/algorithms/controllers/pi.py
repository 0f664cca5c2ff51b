"""Hold the entropy at a target: a proportional-integral controller on the logarithm of the setting."""

from __future__ import annotations

import math
from typing import Any

from pyrl.config import PIControl


class PIController:
    """u_t = clip(u_0 exp(kp e_t + I_t), lowest, highest), I_t = I_{t-1} + ki e_t, e_t = 1 - H_t / H*.

    H_t is the entropy of the last step and H* the target. A multiplicative law, since a ratio or a coefficient is felt
    by orders of magnitude; relative errors, so that gains do not depend on the target. Too little entropy raises the
    setting. |e_t| is cut at 1, so that a burst of entropy cannot empty the integral in one step. The integral stands
    still while the output is at a bound and the error would push it further (conditional integration), and never leaves
    what the bounds can use: there is no wind-up.
    """

    def __init__(self, config: PIControl, start: float) -> None:
        """`start`: u_0, above 0 and within the bounds."""
        self._config, self._start = config, start
        self._integral = 0.0
        self.value = start

    def observe(self, entropy: float | None) -> None:
        if entropy is None:
            return
        config = self._config
        error = max(-1.0, min(1.0, 1.0 - entropy / config.target))
        low, high = (math.log(bound / self._start) for bound in (config.lowest, config.highest))
        wanted = config.kp * error + self._integral
        if not (wanted > high and error > 0) and not (wanted < low and error < 0):
            self._integral = max(low, min(high, self._integral + config.ki * error))
        self.value = self._start * math.exp(max(low, min(high, config.kp * error + self._integral)))
        self.value = max(config.lowest, min(config.highest, self.value))  # exp rounds

    def state_dict(self) -> dict[str, Any]:
        return {"integral": self._integral, "value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._integral, self.value = state["integral"], state["value"]
