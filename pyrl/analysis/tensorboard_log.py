"""Scalars of TensorBoard's event files, whoever wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator


def read_events(path: Path) -> list[dict[str, Any]]:
    """Of one file, or of all event files of a folder: a row a step, tag -> value; where a step was written twice, as
    after a resume, the later value."""
    events = EventAccumulator(str(path), size_guidance={SCALARS: 0})
    events.Reload()
    rows: dict[int, dict[str, Any]] = {}
    for tag in events.Tags()[SCALARS]:
        for event in events.Scalars(tag):
            rows.setdefault(event.step, {"step": event.step})[tag] = event.value
    return [rows[step] for step in sorted(rows)]
