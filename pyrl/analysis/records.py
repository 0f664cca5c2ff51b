"""Run folders as arrays: what `metrics.jsonl` and `config.yaml` of a run say."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pyrl.telemetry.jsonl import RecordFileError, read_jsonl

START_STEPS = 5
"""Steps whose mean is a run's start: few, because the policy moves fastest there."""
END_STEPS = 20
"""Steps whose mean is a run's end."""


@dataclass(frozen=True, slots=True)
class RunRecords:
    """One run, read from its folder."""

    label: str
    folder: Path
    rows: list[dict[str, Any]]
    """One a step, steps increasing."""
    config: dict[str, Any]
    """Flat: `loss.name` -> value. Empty when the folder has no config.yaml."""

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps int64 [n], values float64 [n]) of a number metric, at the steps where it is defined."""
        points = [(row["step"], row[name]) for row in self.rows if row.get(name) is not None]
        steps = np.array([step for step, _ in points], dtype=np.int64)
        return steps, np.array([value for _, value in points], dtype=np.float64)

    def start(self, name: str, n: int = START_STEPS) -> float | None:
        """Mean of the first `n` defined values, None when there are none."""
        values = self.series(name)[1][:n]
        return float(values.mean()) if values.size else None

    def end(self, name: str, n: int = END_STEPS) -> float | None:
        """Mean of the last `n` defined values, None when there are none."""
        values = self.series(name)[1][-n:]
        return float(values.mean()) if values.size else None


def load_run(folder: Path | str, label: str | None = None) -> RunRecords:
    """Read one run folder; `label` defaults to its name. A line that is still being written is left out.

    Raises RecordFileError: no such folder, no metrics.jsonl, no finished step, a damaged line, a repeated step.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RecordFileError(f"{folder} is not a folder: give a run folder that holds metrics.jsonl")
    path = folder / "metrics.jsonl"
    rows = list(read_jsonl(path))
    if not rows:
        raise RecordFileError(f"{path} has no finished step yet")
    steps = [row["step"] for row in rows]
    if len(set(steps)) != len(steps):
        repeated = next(b for a, b in itertools.pairwise(steps) if a == b)
        raise RecordFileError(f"{path}: step {repeated} is recorded twice; two runs may have written to this folder")
    return RunRecords(label or folder.resolve().name, folder, rows, _read_config(folder / "config.yaml"))


def load_runs(runs: Mapping[str, Path | str]) -> list[RunRecords]:
    """Label -> run folder, in order; errors as in `load_run`."""
    if not runs:
        raise ValueError("runs is empty: give at least one label and run folder")
    return [load_run(folder, label) for label, folder in runs.items()]


def config_differences(runs: list[RunRecords]) -> dict[str, list[Any]]:
    """Config key -> its value in each run (None where absent), for the keys on which the runs do not agree."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    values = {key: [run.config.get(key) for run in runs] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        tree = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise RecordFileError(f"{path} is not valid YAML: {error}") from error
    return _flat(tree or {})


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
