"""Step, entropy and reward from the logs of any trainer: pyrl run folders, CSV, JSON lines, TensorBoard events, verl's
console text.

What is recognised: pyrl's `metrics.jsonl`; verl's file logger, console and exports; TRL's `trainer_state.json` and
exports; OpenRLHF's exports; TensorBoard's event files of these; what W&B's CSV button writes, with one or several runs;
and any table whose columns are named or given. A cell that is empty, null or NaN is missing.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pyrl.analysis.records import load_run
from pyrl.analysis.tensorboard_log import read_events
from pyrl.config import ConfigError
from pyrl.telemetry.jsonl import RecordFileError


@dataclass(frozen=True, slots=True)
class Columns:
    """Names under which a trainer logs the three columns, the likeliest first."""

    trainer: str
    step: tuple[str, ...]
    entropy: tuple[str, ...]
    reward: tuple[str, ...]
    mark: str = ""
    """Some other column of this trainer begins so; told apart by it from a table that uses the same plain names."""


STEPS = ("step", "global_step", "_step", "Step")
KNOWN = (
    Columns("pyrl", ("step",), ("entropy", "policy/entropy"), ("reward_mean", "reward/reward_mean")),
    Columns("verl", ("training/global_step", *STEPS), ("actor/entropy", "actor/entropy_loss"),
            ("critic/score/mean", "critic/rewards/mean")),
    Columns("OpenRLHF", ("train/global_step", *STEPS), ("train/entropy_loss", "entropy_loss"),
            ("train/reward", "reward")),
    Columns("TRL", ("train/global_step", *STEPS), ("train/entropy", "entropy"),
            ("train/reward", "reward"), mark="rewards/"),
    Columns("table", (*STEPS, "steps", "iteration"), ("entropy", "policy_entropy"),
            ("reward", "reward_mean", "mean_reward", "score", "accuracy")),
)  # fmt: skip
"""Read in this order: a log belongs to the first trainer that has an entropy and a reward column in it."""

EVENTS = "events.out.tfevents.*"
"""What TensorBoard's writers call their files."""
ENVELOPE = ("__MIN", "__MAX")
"""Ends of the columns that W&B's CSV button adds to each: the range within a bucket of steps."""

LOWEST_ENTROPY = -1e-3
"""Entropy of a distribution over tokens is not negative; rounding may be."""
CONSOLE_STEP = re.compile(r"(?:^|\s)step:(\d+) - (.*)")
CONSOLE_VALUE = re.compile(r"([\w/@.()-]+):(?:np\.float\d+\()?(-?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|-?inf)\)?$",
                           re.IGNORECASE)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Curve:
    """One run's columns, steps increasing, NaN where a value is missing."""

    label: str
    path: Path
    trainer: str
    columns: tuple[str, str, str]
    """Names of step, entropy and reward as the log has them."""
    steps: np.ndarray
    """Those that have entropy or reward."""
    entropy: np.ndarray
    reward: np.ndarray
    rows: list[dict[str, Any]] = field(repr=False)
    """All that the log says, one a step, under `step` too."""
    config: dict[str, Any] = field(repr=False)
    """Flat settings of a pyrl run, else empty."""
    repeated_steps: int
    """Steps that the log has more than once, as after a resume; a later value counts."""


def expand(paths: Iterable[Path]) -> list[Path]:
    """Each path, a folder without a log of its own replaced by the folders in it that have one. Raises ConfigError."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path} does not exist: give run folders or log files")
        inside = [path]
        if path.is_dir() and _log_of(path) is None:
            inside = sorted(child for child in path.iterdir() if child.is_dir() and _log_of(child))
            if not inside:
                raise ConfigError(f"{path} holds none of {LOGS}, nor does a folder in it")
        found += inside
    return found


def read_curves(
    path: Path, *, step: str | None = None, entropy: str | None = None, reward: str | None = None
) -> list[Curve]:
    """The runs of one log: one, but for a table whose columns are of several. `step`, `entropy`, `reward` name columns
    and go before what is recognised.

    Raises ConfigError: unreadable, a column is missing or not numbers, entropy below 0.
    """
    try:
        runs, config = _read(path)
    except (RecordFileError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: {error}") from error
    return [_curve(path, label, raw, config, step, entropy, reward) for label, raw in runs.items()]


def _curve(
    path: Path,
    label: str,
    raw: list[dict[str, Any]],
    config: dict[str, Any],
    step: str | None,
    entropy: str | None,
    reward: str | None,
) -> Curve:
    if not raw:
        raise ConfigError(f"{path} has no row: is it the log of a run?")
    present = dict.fromkeys(name for row in raw for name in row)
    trainer, columns = _recognise(path, tuple(present), step, entropy, reward)
    by_step, repeated = _merge(path, raw, columns)
    rows = [{**by_step[s], columns[0]: s, "step": s} for s in sorted(by_step)]
    values = [[_number(path, name, row.get(name)) for name in columns] for row in rows]
    # A row of an evaluation, or of the state before training, is no step that lacks something.
    steps, *series = np.array([v for v in values if not np.isnan(v[1:]).all()]).reshape(-1, 3).T
    lowest = np.nanmin(series[0], initial=0.0)
    if lowest < LOWEST_ENTROPY:
        raise ConfigError(f"{path}: {columns[1]} goes down to {lowest:.4g}; entropy in nats is not negative: is this "
                          "column an entropy loss with its sign, or a log-prob?")  # fmt: skip
    return Curve(label, path, trainer, columns, steps.astype(np.int64), *series, rows, config, repeated)


LOGS = "metrics.jsonl, trainer_state.json, " + EVENTS


def _log_of(folder: Path) -> Path | None:
    """The log in a run's folder, the one with the most in it first."""
    names = [folder / name for name in ("metrics.jsonl", "trainer_state.json")]
    return next((path for path in [*names, *sorted(folder.glob(EVENTS))] if path.is_file()), None)


def _read(path: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """(label of each run -> its rows, settings)"""
    label = path.resolve().name if path.is_dir() else path.stem
    if path.is_dir():
        log = _log_of(path)
        if log is None:
            raise RecordFileError(f"holds none of {LOGS}")
        if log.name == "metrics.jsonl" and _is_pyrl(log):
            run = load_run(path)
            return {label: run.rows}, run.config
        if log.match(EVENTS):
            return {label: read_events(path)}, {}
        path = log
    if path.suffix in (".csv", ".tsv"):
        return _read_table(path, label), {}
    return {label: _read_rows(path)}, {}


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if path.match(EVENTS):
        return read_events(path)
    if path.suffix == ".json":
        return _read_json(path)
    if path.suffix in (".jsonl", ".ndjson"):
        return _read_lines(path)
    rows = _read_console(path)
    if not rows:
        raise RecordFileError("no line of the form `step:N - name:value - ...`, and its name does not end in .csv, "
                              ".tsv, .json or .jsonl")  # fmt: skip
    return rows


def _is_pyrl(log: Path) -> bool:
    with log.open() as file:
        return '"policy_version"' in file.readline()


def _read_table(path: Path, label: str) -> dict[str, list[dict[str, Any]]]:
    """Columns `RUN - NAME` are of that run, others of all; one run is called `label`."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        head = file.readline()
        file.seek(0)
        delimiter = max("\t,;", key=head.count)
        rows = csv.DictReader(file, delimiter=delimiter)
        names = [name for name in rows.fieldnames or [] if not name.endswith(ENVELOPE)]
        columns = {name: _of_run(name) for name in names}
        if repeated := [name for name in names if names.count(name) > 1]:
            raise RecordFileError(f"several columns of {repeated[0]!r}: write each run to a file of its own")
        runs = list(dict.fromkeys(run for run, _ in columns.values() if run)) or [""]
        read = list(rows)
        return {
            run if len(runs) > 1 else label: [
                {plain: row[name] for name, (owner, plain) in columns.items() if owner in ("", run)} for row in read
            ]
            for run in runs
        }


def _of_run(column: str) -> tuple[str, str]:
    """(run or nothing, name): experiment trackers export `RUN - actor/entropy`."""
    run, _, name = column.rpartition(" - ")
    return run.strip(), name.strip()


def _read_json(path: Path) -> list[dict[str, Any]]:
    try:
        tree = json.loads(path.read_text())
    except ValueError as error:
        raise RecordFileError(f"not JSON ({error})") from error
    rows = tree.get("log_history") if isinstance(tree, dict) else tree
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RecordFileError("want a list of objects, or an object with `log_history`, as TRL's trainer_state.json")
    return rows


def _read_lines(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    text = path.read_text()
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if not line.endswith("\n"):  # still being written
                break
            raise RecordFileError(f"line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise RecordFileError(f"line {number} is not an object: {line[:80]!r}")
        nested = row.get("data")  # verl's file logger: {"step": n, "data": {...}}
        rows.append({**{k: v for k, v in row.items() if k != "data"}, **nested} if isinstance(nested, dict) else row)
    return rows


def _read_console(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        if found := CONSOLE_STEP.search(line):
            pairs = (CONSOLE_VALUE.match(part.strip()) for part in found[2].split(" - "))
            rows.append({"step": found[1], **{pair[1]: pair[2] for pair in pairs if pair}})
    return rows


def _recognise(
    path: Path, present: tuple[str, ...], step: str | None, entropy: str | None, reward: str | None
) -> tuple[str, tuple[str, str, str]]:
    for option, name in (("--step", step), ("--entropy", entropy), ("--reward", reward)):
        if name is not None and name not in present:
            raise ConfigError(f"{path}: no column {name!r} ({option}); it has {_listed(present)}")
    for known in KNOWN:
        h = entropy or _first(known.entropy, present)
        r = reward or _first(known.reward, present)
        s = step or _first(known.step, present)
        marked = any(name.removeprefix("train/").startswith(known.mark) for name in present)
        if h and r and s and marked:
            return "table" if entropy and reward else known.trainer, (s, h, r)
    missing = [
        f"{what} ({option})"
        for what, option, given, names in (
            ("step", "--step", step, {n for k in KNOWN for n in k.step}),
            ("entropy", "--entropy", entropy, {n for k in KNOWN for n in k.entropy}),
            ("reward", "--reward", reward, {n for k in KNOWN for n in k.reward}),
        )
        if not given and not names & set(present)
    ]
    what = " and ".join(missing) or "entropy and reward of one trainer (--entropy, --reward)"
    raise ConfigError(f"{path}: no column recognised as {what}; it has {_listed(present)}")


def _first(names: tuple[str, ...], present: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in present), None)


def _listed(names: tuple[str, ...], limit: int = 40) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _merge(
    path: Path, raw: list[dict[str, Any]], columns: tuple[str, str, str]
) -> tuple[dict[int, dict[str, Any]], int]:
    """Step -> what all its rows say, and how many steps have entropy or reward twice.

    Trainers log evaluation in rows of its own, without the two columns.
    """
    merged: dict[int, dict[str, Any]] = {}
    repeated = set()
    for row in raw:
        number = _number(path, columns[0], row.get(columns[0]))
        if not np.isfinite(number):
            continue
        if number != int(number):
            raise ConfigError(f"{path}: column {columns[0]!r} holds {number:g}, want whole steps (--step)")
        step = int(number)
        known = merged.setdefault(step, {})
        values = {name: value for name, value in row.items() if value is not None and value != ""}
        if any(name in known and name in values for name in columns[1:]):
            repeated.add(step)
        known |= values
    return merged, len(repeated)


def _number(path: Path, column: str, value: Any) -> float:
    if value is None or value == "":
        return np.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{path}: column {column!r} holds {value!r}, want a number") from None


