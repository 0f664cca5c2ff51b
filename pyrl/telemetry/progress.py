"""Live progress of a phase: a bar on a terminal, plain lines elsewhere (CI logs, files)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

RECENT_STEPS = 20
"""Steps behind the estimate of the time left."""

_SHOWN = (("reward_mean", "reward"), ("entropy", "entropy"), ("loss", "loss"), ("tokens_per_second", "tok/s"))


class StepProgress:
    """Progress through the steps of one phase of a run.

        with StepProgress("GRPO", total=200) as progress:
            progress.update(step, record)

    `record` is any mapping of metric names; the ones in `shown` appear, null as a dash. On a terminal every step
    redraws one line; elsewhere the first, every `every`-th and the last step print a line. `enabled=False` (ranks other
    than 0) prints nothing. `start` is the number of steps already done when a run resumes.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        start: int = 0,
        every: int = 10,
        shown: tuple[str, ...] = ("reward_mean", "entropy", "tokens_per_second"),
        console: Console | None = None,
        enabled: bool = True,
        unit: str = "step",
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        unknown = set(shown) - {name for name, _ in _SHOWN}
        if unknown:
            raise ValueError(f"shown {sorted(unknown)}: choose from {[name for name, _ in _SHOWN]}")
        self.title, self.total, self._first, self._every = title, total, start + 1, every
        self._shown = tuple((name, text) for name, text in _SHOWN if name in shown)
        self._console = console or Console()
        self._enabled, self._unit = enabled, unit
        self._live = enabled and self._console.is_terminal and not self._console.is_dumb_terminal
        self._times: deque[tuple[int, float]] = deque([(start, time.monotonic())], maxlen=RECENT_STEPS + 1)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            console=self._console,
            expand=True,
            disable=not self._live,
        )
        self._task = self._bar.add_task(title, total=total, completed=start, facts="")

    def __enter__(self) -> StepProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, step: int, record: Mapping[str, Any]) -> None:
        """Show that `step` is done."""
        self._times.append((step, time.monotonic()))
        facts = "  ".join([*self._metrics(record), self._time_left(step)])
        if self._live:
            self._bar.update(self._task, completed=step, facts=facts)
        elif self._enabled and (step in (self._first, self.total) or step % self._every == 0):
            self._print(f"{self.title}  {self._unit} {step}/{self.total}  {facts}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()  # a CI log is a pipe: without this, lines appear in blocks of 8 KiB

    def _metrics(self, record: Mapping[str, Any]) -> list[str]:
        return [f"{text} {format_value(record.get(name), 0 if text == 'tok/s' else 3)}" for name, text in self._shown]

    def _time_left(self, step: int) -> str:
        (first_step, first), (_, last) = self._times[0], self._times[-1]
        if step >= self.total:
            return "done"
        if step <= first_step:
            return "left -"
        return f"left {format_duration((last - first) / (step - first_step) * (self.total - step))}"


def format_value(value: float | None, digits: int) -> str:
    """A number with `digits` decimals and thousands separated, `-` for None."""
    return "-" if value is None else f"{value:,.{digits}f}"


def format_duration(seconds: float) -> str:
    """`0:07`, `12:34`, `3:05:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
