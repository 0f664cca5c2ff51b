"""Take the method away: the setting falls to its lowest value in a straight line."""

from __future__ import annotations

from typing import Any

from pyrl.config import LinearAnnealControl


class LinearAnneal:
    """u_t = max(lowest, u_0 (1 - t / anneal_steps)), t steps done: entropy is kept while the policy explores, and the
    end of the run spends it."""

    def __init__(self, config: LinearAnnealControl, start: float) -> None:
        self._config, self._start = config, start
        self._steps = 0

    @property
    def value(self) -> float:
        return max(self._config.lowest, self._start * (1.0 - self._steps / self._config.anneal_steps))

    def observe(self, entropy: float | None) -> None:
        del entropy
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]
