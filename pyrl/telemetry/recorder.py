"""Writes a run folder's records: metrics.jsonl, samples.jsonl, config.yaml and TensorBoard events. Rank 0 only."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from pyrl.telemetry.jsonl import JsonlFile, RecordFileError
from pyrl.telemetry.names import METRICS, Metric

if TYPE_CHECKING:
    from pyrl.types import RolloutGroup, StepRecord

SUPERSEDED = "superseded"
"""Folder of the records that were given up when a run went back."""
FRACTION_SLACK = 1e-6
"""Rounding allowed to a fraction beyond [0, 1]: it may come from fp32 sums."""


class RunRecorder:
    """The one writer of a run folder's records.

        recorder = RunRecorder(folder)
        recorder.truncate_after(checkpoint_step)       # on resume; -1 starts anew
        recorder.write_config(config.to_yaml())
        recorder.write(record)                         # once a step

    A record holds names of `telemetry.names` only. Undefined values are None; a contract name that is left out is
    written as null. Lines reach the operating system at once and the disk at `sync()`, which belongs before a
    checkpoint is declared complete.
    """

    def __init__(self, run_folder: Path | str) -> None:
        self.folder = Path(run_folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._metrics = JsonlFile(self.folder / "metrics.jsonl")
        self._samples = JsonlFile(self.folder / "samples.jsonl")
        self._validation = JsonlFile(self.folder / "validation.jsonl")
        self._events: EventFileWriter | None = None

    @property
    def last_step(self) -> int | None:
        """Step of the newest record, None before the first."""
        return self._metrics.last_step

    def truncate_after(self, step: int) -> int:
        """Begin after `step`, the step of the checkpoint that a run resumes from; -1: begin anew.

        What was recorded after it is moved to `superseded/from_step_...`, with its config: a folder of records like
        this one. Returns the number of metric records moved. RecordFileError when records before the checkpoint are
        missing (an empty folder is allowed: a run may resume from another run's checkpoint).
        """
        if self.last_step is not None and self.last_step < step:
            raise RecordFileError(
                f"{self._metrics.path} ends at step {self.last_step} but the checkpoint is of step {step}: its "
                "records are lost; resume into a new run folder, or from an older checkpoint"
            )
        later = {f.path.name: f.lines_after(step) for f in (self._metrics, self._samples, self._validation)}
        if any(later.values()):
            self._keep_superseded(later, step + 1)
        moved = self._metrics.truncate_after(step)
        self._samples.truncate_after(step)
        self._validation.truncate_after(step)
        if self._events is not None or any(self.folder.glob("events.out.tfevents.*")):
            self._tensorboard_restart(step + 1)
        return moved

    def write_config(self, text: str) -> None:
        """Write `config.yaml`, whole or not at all. A different one from before the resume is kept beside it."""
        path = self.folder / "config.yaml"
        if path.exists() and self.last_step is not None:
            previous = path.read_text()
            if previous == text:
                return
            path.rename(self.folder / f"config.until_step_{self.last_step}.yaml")
        temporary = path.with_suffix(".yaml.tmp")
        temporary.write_text(text)
        temporary.rename(path)

    def write(self, record: StepRecord) -> StepRecord:
        """Append one step; returns the row as written, in the order of `names.METRICS`, numbers as plain Python.

        ValueError: unknown name, wrong shape, NaN or infinity, a fraction outside [0, 1], a step not after the last.
        """
        row = checked_record(record)
        if self.last_step is not None and row["step"] <= self.last_step:
            raise ValueError(
                f"step {row['step']} is not after the last recorded step {self.last_step} of {self._metrics.path}: "
                "call truncate_after() when resuming, or use another run folder"
            )
        self._metrics.append([row])
        self._write_events(row)
        return row

    def write_samples(self, samples: Iterable[Mapping[str, Any]]) -> None:
        """Append rows of `samples.jsonl`: `sample_row`, `stages.selected_sample.selected_row`."""
        self._samples.append(samples)

    def write_validation(self, questions: Iterable[Mapping[str, Any]]) -> None:
        """Append rows of `validation.jsonl`: one a held-out prompt: samples, right, unjudged, reasons."""
        self._validation.append(questions)

    def sync(self) -> None:
        """Force records to the disk."""
        self._metrics.sync()
        self._samples.sync()
        self._validation.sync()

    def close(self) -> None:
        self._metrics.close()
        self._samples.close()
        self._validation.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> RunRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep_superseded(self, files: Mapping[str, bytes], first_step: int) -> None:
        """Write `files` and the present config under `superseded/`, whole or not at all."""
        root = self.folder / SUPERSEDED
        writing = root / ".writing"
        shutil.rmtree(writing, ignore_errors=True)  # a killed writer's
        writing.mkdir(parents=True)
        for name, content in files.items():
            (writing / name).write_bytes(content)
        config = self.folder / "config.yaml"
        if config.exists():
            shutil.copyfile(config, writing / config.name)
        name, count = f"from_step_{first_step:06d}", 0
        while (target := root / (f"{name}.{count}" if count else name)).exists():
            count += 1
        writing.rename(target)

    def _event_writer(self) -> EventFileWriter:
        if self._events is None:
            self._events = EventFileWriter(str(self.folder), flush_secs=10)
        return self._events

    def _tensorboard_restart(self, step: int) -> None:
        """Make TensorBoard drop the points at and after `step` that an earlier, broken run left."""
        event = Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START))
        self._event_writer().add_event(event)

    def _write_events(self, row: StepRecord) -> None:
        values = [
            Summary.Value(tag=f"{METRICS[name].group}/{name}", simple_value=value)
            for name, value in row.items()
            if name != "step" and isinstance(value, int | float)
        ]
        event = Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values))
        self._event_writer().add_event(event)


def checked_record(record: StepRecord) -> StepRecord:
    """The record in the table's order with contract names filled by None; ValueError as in `RunRecorder.write`."""
    unknown = sorted(set(record) - set(METRICS))
    if unknown:
        raise ValueError(f"unknown metric {', '.join(map(repr, unknown))}: name, unit and meaning belong into "
                         "pyrl/telemetry/names.py first")  # fmt: skip
    if record.get("step") is None:
        raise ValueError("a record needs its step")
    return {
        name: _checked(name, metric, record.get(name))
        for name, metric in METRICS.items()
        if metric.contract or name in record
    }


def _checked(name: str, metric: Metric, value: Any) -> Any:
    if value is None:
        return None
    if metric.shape == "list":
        if not isinstance(value, list | tuple):
            raise ValueError(f"metric {name!r} wants a list, got {value!r}")
        return [_number(f"{name}[{i}]", metric, item) for i, item in enumerate(value)]
    if metric.shape == "mapping":
        if not isinstance(value, Mapping):
            raise ValueError(f"metric {name!r} wants a mapping, got {value!r}")
        return {str(key): None if item is None else _number(f"{name}[{key}]", metric, item)
                for key, item in value.items()}  # fmt: skip
    return _number(name, metric, value)


def _number(name: str, metric: Metric, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"metric {name!r} wants a Python number, got {type(value).__name__} {value!r}")
    if metric.shape == "integer" and not isinstance(value, Integral):
        raise ValueError(f"metric {name!r} counts {metric.unit} and wants an integer, got {value!r}")
    number = int(value) if isinstance(value, Integral) else float(value)
    if not math.isfinite(number):
        raise ValueError(f"metric {name!r} is {number}: record None where a value is undefined, and stop the run "
                         "where it should have been finite")  # fmt: skip
    if metric.unit == "fraction" and not -FRACTION_SLACK <= number <= 1 + FRACTION_SLACK:
        raise ValueError(f"metric {name!r} is a fraction, got {number}: is it a percentage or a count?")
    return number


def sample_row(step: int, group: RolloutGroup, index: int, decode: Callable[[list[int]], str]) -> dict[str, Any]:
    """One line of `samples.jsonl`: completion `index` of `group`, with `decode` turning token ids into text."""
    completion, verdict = group.completions[index], group.verdicts[index]
    return {
        "step": step,
        "kind": "response",
        "prompt_id": group.prompt.id,
        "source": group.prompt.source,
        "prompt": decode(list(group.prompt.token_ids)),
        "response": decode(list(completion.token_ids)),
        "ground_truth": group.prompt.ground_truth,
        "verdict": verdict.outcome,
        "reason": verdict.reason,
        "extracted": verdict.extracted,
        "reward": verdict.reward,
        "response_tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "policy_versions": sorted({span.policy_version for span in completion.version_spans}),
    }
