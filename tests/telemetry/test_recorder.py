"""Run folders: what is written is what is read, also after a crash and a resume."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pyrl.telemetry.jsonl import JsonlFile, RecordFileError, read_jsonl
from pyrl.telemetry.names import METRICS
from pyrl.telemetry.recorder import RunRecorder, sample_row
from pyrl.types import Completion, Prompt, RolloutGroup, Verdict, VersionSpan


def record(step: int, **more: object) -> dict[str, object]:
    return {"step": step, "entropy": 0.1 + 1 / 3 * step, "selected_tokens": 7 * step, **more}


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_a_record_comes_back_to_the_bit_with_nulls_where_undefined(tmp_path: Path) -> None:
    with RunRecorder(tmp_path) as recorder:
        recorder.write(record(1, loss_updates=[0.1, 1e-300], reward_by_source={"b": 1 / 3, "a": None}))
        recorder.write(record(2, entropy=None, grad_norm=np.float32(0.1), gradient_step=np.int64(8)))
    first, second = lines(tmp_path)
    assert first["entropy"] == 0.1 + 1 / 3 and first["loss_updates"] == [0.1, 1e-300]
    assert first["reward_by_source"] == {"b": 1 / 3, "a": None}
    assert second["entropy"] is None
    assert second["grad_norm"] == float(np.float32(0.1)) and second["gradient_step"] == 8
    contract = {name for name, metric in METRICS.items() if metric.contract}
    assert set(first) == contract | {"reward_by_source"} and set(second) == contract
    assert first["loss"] is None and "NaN" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"entorpy": 1.0}, "unknown metric 'entorpy'.*names.py"),
        ({"loss": math.nan}, "'loss' is nan"),
        ({"grad_norm": math.inf}, "'grad_norm' is inf"),
        ({"loss_updates": [0.0, math.nan]}, r"'loss_updates\[1\]' is nan"),
        ({"loss_updates": 0.5}, "'loss_updates' wants a list"),
        ({"loss": [0.5]}, "'loss' wants a Python number, got list"),
        ({"loss": "0.5"}, "'loss' wants a Python number, got str"),
        ({"loss": True}, "'loss' wants a Python number, got bool"),
        ({"selected_tokens": 1.5}, "'selected_tokens' counts tokens"),
        ({"clip_fraction": 2.5}, "'clip_fraction' is a fraction, got 2.5"),
        ({"reward_by_source": 0.5}, "'reward_by_source' wants a mapping"),
        ({"step": None}, "needs its step"),
    ],
)
def test_a_bad_record_is_refused_and_leaves_nothing(tmp_path: Path, bad: dict, message: str) -> None:
    with RunRecorder(tmp_path) as recorder:
        recorder.write(record(1))
        before = (tmp_path / "metrics.jsonl").read_bytes()
        with pytest.raises(ValueError, match=message):
            recorder.write(record(2) | bad)
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
        recorder.write(record(2))


def test_a_step_is_written_once(tmp_path: Path) -> None:
    with RunRecorder(tmp_path) as recorder:
        recorder.write(record(3))
        with pytest.raises(ValueError, match="step 3 is not after the last recorded step 3"):
            recorder.write(record(3))
    with RunRecorder(tmp_path) as recorder, pytest.raises(ValueError, match="call truncate_after"):
        recorder.write(record(1))


@pytest.mark.parametrize(("step", "kept"), [(0, []), (2, [1, 2]), (4, [1, 2, 3, 4])])
def test_resume_drops_what_lies_beyond_the_checkpoint(tmp_path: Path, step: int, kept: list[int]) -> None:
    with RunRecorder(tmp_path) as recorder:
        for s in (1, 2, 3, 4):
            recorder.write(record(s))
            recorder.write_samples([{"step": s, "response": "é\n"}, {"step": s, "response": "b"}])
            recorder.write_validation([{"step": s, "prompt_id": "1", "right": 1}])
    with RunRecorder(tmp_path) as recorder:
        assert recorder.truncate_after(step) == 4 - len(kept)
        assert recorder.last_step == (kept[-1] if kept else None)
        recorder.write(record(step + 1, entropy=9.0))
    assert [row["step"] for row in lines(tmp_path)] == [*kept, step + 1]
    assert lines(tmp_path)[-1]["entropy"] == 9.0
    assert [row["step"] for row in lines(tmp_path, "samples.jsonl")] == [s for s in kept for _ in range(2)]
    assert [row["step"] for row in lines(tmp_path, "validation.jsonl")] == kept


def test_what_lies_beyond_the_checkpoint_is_kept_aside_with_its_config(tmp_path: Path) -> None:
    def write(*steps: int) -> None:
        for step in steps:
            recorder.write(record(step))
            recorder.write_samples([{"step": step, "response": "é\n"}])

    superseded = tmp_path / "superseded"
    with RunRecorder(tmp_path) as recorder:
        recorder.truncate_after(-1)
        recorder.write_config("steps: 4\n")
        write(1, 2, 3, 4)
        whole = {name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "samples.jsonl")}
        recorder.truncate_after(4)
        assert not superseded.exists()  # nothing was given up
        recorder.truncate_after(2)
        first = superseded / "from_step_000003"
        assert {name: (tmp_path / name).read_bytes() + (first / name).read_bytes() for name in whole} == whole
        assert [row["step"] for row in lines(first)] == [3, 4]
        assert (first / "config.yaml").read_text() == "steps: 4\n"
        write(3)
        recorder.truncate_after(2)
        recorder.truncate_after(-1)
    assert sorted(p.name for p in superseded.iterdir()) == [
        "from_step_000000", "from_step_000003", "from_step_000003.1"]  # fmt: skip
    assert [row["step"] for row in lines(superseded / "from_step_000003.1")] == [3]
    assert [row["step"] for row in lines(superseded / "from_step_000000")] == [1, 2]
    assert lines(tmp_path) == [] and lines(tmp_path, "samples.jsonl") == []


def test_a_full_disk_while_records_are_set_aside_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunRecorder(tmp_path) as recorder:
        for step in (1, 2, 3):
            recorder.write(record(step))
        before = (tmp_path / "metrics.jsonl").read_bytes()

        def full(path: Path, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            recorder.truncate_after(1)
        monkeypatch.undo()
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
        assert recorder.truncate_after(1) == 2
    assert [p.name for p in (tmp_path / "superseded").iterdir()] == ["from_step_000002"]


def test_resume_without_the_records_before_the_checkpoint_is_refused(tmp_path: Path) -> None:
    with RunRecorder(tmp_path) as recorder:
        assert recorder.truncate_after(5) == 0  # an empty folder may continue another run
        recorder.write(record(6))
        with pytest.raises(RecordFileError, match="ends at step 6 but the checkpoint is of step 9"):
            recorder.truncate_after(9)


@pytest.mark.parametrize(
    ("tail", "kept"),
    [(b'{"step": 3, "ent', [1, 2]), (b"{", [1, 2]), ('{"step": 3, "a": "é'.encode()[:-1], [1, 2]),
     (b'{"step": 3, "entropy": 1.0}', [1, 2, 3])],
)  # fmt: skip
def test_an_unfinished_last_line_is_repaired(tmp_path: Path, tail: bytes, kept: list[int]) -> None:
    with RunRecorder(tmp_path) as recorder:
        recorder.write(record(1))
        recorder.write(record(2))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2]  # a reader only skips it
    with RunRecorder(tmp_path) as recorder:
        assert recorder.last_step == kept[-1]
        recorder.write(record(10))
    assert [row["step"] for row in lines(tmp_path)] == [*kept, 10]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"step": 1}\nnonsense\n{"step": 2}\n', "metrics.jsonl:2: not JSON"),
        ('{"step": 1}\n[1]\n', "metrics.jsonl:2: not an object with an integer `step`"),
        ('{"step": 2}\n{"step": 1}\n', "metrics.jsonl:2: step 1 follows step 2"),
    ],
)
def test_damage_inside_the_file_is_named_not_skipped(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(RecordFileError, match=message):
        RunRecorder(tmp_path)


def test_records_survive_a_killed_writer(tmp_path: Path) -> None:
    """Every line whose write returned is there after SIGKILL, and nothing else."""
    program = (
        "import sys; from pyrl.telemetry.recorder import RunRecorder\n"
        "recorder = RunRecorder(sys.argv[1])\n"
        "for step in range(1, 10**9):\n"
        "    recorder.write({'step': step}); print(step, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    told = 0
    while told < 25:
        told = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    rest = writer.stdout.read()  # communicate() would skip what readline has buffered
    writer.stdout.close()
    writer.wait(timeout=20)
    told = max([told, *map(int, rest.split())])
    with RunRecorder(tmp_path) as recorder:
        assert recorder.last_step in (told, told + 1)
        assert [row["step"] for row in lines(tmp_path)] == list(range(1, recorder.last_step + 1))


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = JsonlFile(tmp_path / "metrics.jsonl")
    file.append([{"step": 1}])
    real_write, calls = os.write, []

    def short_write(fd: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real_write(fd, data[:5])

    monkeypatch.setattr(os, "write", short_write)
    with pytest.raises(OSError, match=r"No space left on device.*metrics\.jsonl"):
        file.append([{"step": 2}])
    monkeypatch.undo()
    assert file.last_step == 1
    file.append([{"step": 2}])
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_config_is_replaced_whole_and_the_one_before_a_resume_kept(tmp_path: Path) -> None:
    with RunRecorder(tmp_path) as recorder:
        recorder.write_config("steps: 1\n")
        recorder.write_config("steps: 2\n")  # nothing recorded under the first
        recorder.write(record(1))
        recorder.write_config("steps: 2\n")
        assert sorted(p.name for p in tmp_path.glob("config*")) == ["config.yaml"]
        recorder.write_config("steps: 3\n")
    assert (tmp_path / "config.yaml").read_text() == "steps: 3\n"
    assert (tmp_path / "config.until_step_1.yaml").read_text() == "steps: 2\n"
    assert not list(tmp_path.glob("*.tmp"))


def test_tensorboard_shows_the_resumed_run_only(tmp_path: Path) -> None:
    with RunRecorder(tmp_path) as recorder:
        for step in (1, 2, 3):
            recorder.write(record(step, entropy=float(step), loss_updates=[1.0]))
    with RunRecorder(tmp_path) as recorder:
        recorder.truncate_after(1)
        recorder.write(record(2, entropy=20.0))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("policy/entropy")] == [(1, 1.0), (2, 20.0)]
    assert set(events.Tags()["scalars"]) == {"policy/entropy", "covariance/selected_tokens"}


def test_sample_row_tells_what_was_asked_answered_and_judged() -> None:
    prompt = Prompt("p1", (1, 2), "42", "toy")
    completion = Completion((3, 4, 5), (-0.1, -0.2, -0.3), "length", (VersionSpan(7, 0, 2), VersionSpan(8, 2, 3)))
    group = RolloutGroup(prompt, [completion], [Verdict("unjudged", "timeout")])
    row = sample_row(9, group, 0, lambda ids: " ".join(map(str, ids)))
    assert (row["step"], row["prompt"], row["response"], row["verdict"], row["reward"]) == (
        9, "1 2", "3 4 5", "unjudged", None)  # fmt: skip
    assert (row["response_tokens"], row["finish_reason"], row["policy_versions"]) == (3, "length", [7, 8])
