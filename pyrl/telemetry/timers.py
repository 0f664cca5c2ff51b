"""Wall-clock time of a step's phases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyrl.telemetry.names import PHASES


class Timers:
    """Phases of one step -> `seconds_*`.

        timers = Timers()
        with timers.phase("rollout"):
            ...
        record |= timers.collect()

    Phases may nest: an inner phase stops the clock of the outer one, so the phases of a step are disjoint and their sum
    never exceeds `seconds_step`. Validation is the exception, it owns the generation and grading inside it. For one
    thread. `synchronize` is called at each boundary, for devices whose work
    outlives the call that started it (`torch.cuda.synchronize`).
    """

    def __init__(self, synchronize: Callable[[], None] | None = None) -> None:
        self._synchronize = synchronize
        self._running: list[str] = []
        self._seconds: dict[str, float] = {}
        self._step_start = self._mark = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the time of the block to `seconds_{name}`; ValueError when `name` is not in `names.PHASES`."""
        if name not in PHASES:
            raise ValueError(f"phase {name!r} is unknown: use one of {', '.join(PHASES)} or add it to names.PHASES")
        self._charge()
        self._running.append("validation" if "validation" in self._running else name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def collect(self) -> dict[str, float]:
        """Seconds of the phases that ran since the last `collect`, and `seconds_step`, all of it. Starts anew."""
        if self._running:
            raise RuntimeError(f"collect() inside phase {self._running[-1]!r}: leave the phase first")
        self._charge()
        seconds = {"seconds_step": self._mark - self._step_start}
        seconds |= {f"seconds_{name}": value for name, value in self._seconds.items()}
        self._seconds = {}
        self._step_start = self._mark
        return seconds

    def _charge(self) -> None:
        """Give the time since the last boundary to the innermost running phase."""
        if self._synchronize is not None:
            self._synchronize()
        now = time.perf_counter()
        if self._running:
            name = self._running[-1]
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._mark
        self._mark = now
