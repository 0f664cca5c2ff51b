"""Progress on a terminal and in a log."""

import io
import time

import pytest
from rich.console import Console

from pyrl.telemetry.progress import StepProgress, format_duration

RECORD = {"reward_mean": 0.25, "entropy": None, "tokens_per_second": 12345.6, "loss": 0.5}


def log(**options: object) -> tuple[io.StringIO, StepProgress]:
    stream = io.StringIO()
    return stream, StepProgress("KL-Cov", 25, console=Console(file=stream, width=60), **options)


def test_a_log_gets_the_first_every_tenth_and_the_last_step() -> None:
    stream, progress = log()
    with progress:
        for step in range(1, 26):
            progress.update(step, RECORD)
    text = stream.getvalue().splitlines()
    assert [line.split()[2] for line in text] == ["1/25", "10/25", "20/25", "25/25"]
    assert text[0].startswith("KL-Cov  step 1/25  reward 0.250  entropy -  tok/s 12,346  left ")
    assert text[-1].endswith("done")
    assert "\x1b" not in stream.getvalue()


def test_time_left_follows_the_recent_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream, progress = log(start=4, every=1)
    now[0] = 300.0  # the first step of a run is slow
    progress.update(5, RECORD)
    assert "left 1:40:00" in stream.getvalue()  # 20 steps of 300 s
    for step in range(6, 26):
        now[0] += 3
        progress.update(step, RECORD)
        if step == 24:
            break
    assert "step 24/25" in stream.getvalue().splitlines()[-1]
    # the 20 steps behind the estimate still hold the slow one: (300 + 19 * 3) / 20
    assert stream.getvalue().splitlines()[-1].endswith("left 0:18")


def test_a_terminal_gets_one_live_line() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None, legacy_windows=False)
    with StepProgress("GRPO", 4, console=console) as progress:
        progress.update(1, RECORD)
        progress.update(4, RECORD)
    text = stream.getvalue()
    assert "4/4" in text and "reward 0.250" in text and "entropy -" in text
    assert "\x1b[" in text  # redrawn in place
    assert "step 1/4" not in text


def test_other_ranks_are_silent_and_bad_options_named() -> None:
    stream, progress = log(enabled=False, every=1)
    with progress:
        progress.update(1, RECORD)
    assert stream.getvalue() == ""
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        log(every=0)
    with pytest.raises(ValueError, match=r"'reward'.*choose from"):
        log(shown=("reward",))


@pytest.mark.parametrize(("seconds", "text"), [(6.6, "0:07"), (59.6, "1:00"), (754, "12:34"), (11100, "3:05:00")])
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
