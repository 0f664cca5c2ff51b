"""Where a run in a folder starts, and that two never write to one. The checkpoints here hold no weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pyrl import run_folder
from pyrl.config import ConfigError, RunConfig, parse_config
from pyrl.learner import checkpoint_store as store
from pyrl.run_folder import changed_fields, check_free, check_shared, find_resume_point, locked


def config(resume: str = "auto", **more: Any) -> RunConfig:
    return parse_config({"model": {"path": "m"}, "data": {"path": "d"}, "checkpoint": {"resume": resume}, **more})


def save(folder: Path, step: int, written_by: RunConfig | None = None) -> Path:
    """A checkpoint of the run in `folder`, as the trainer's."""
    root = folder / "checkpoints"
    state = {"step": step, "config": (written_by or config()).model_dump(mode="json")}
    writing = store.begin(root, step)
    store.write_synced(writing / store.TRAINER_STATE, store.encode_trainer_state(state))
    files = {store.TRAINER_STATE: store.hash_file(writing / store.TRAINER_STATE)}
    return store.publish(writing, root, store.Manifest(step, {}, files), keep_last=10)


def record(folder: Path, last_step: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": step}) + "\n" for step in range(1, last_step + 1)]
    (folder / "metrics.jsonl").write_text("".join(lines))


def start(folder: Path, resume: object = "auto", **more: Any) -> int | None:
    """Step of the checkpoint that a run would start from; None: from the beginning."""
    point = find_resume_point(config(str(resume), **more), folder)
    return None if point is None else point.state["step"]


def test_an_empty_folder_starts_from_the_beginning(tmp_path: Path) -> None:
    assert start(tmp_path / "new") is None and start(tmp_path, "never") is None
    assert not (tmp_path / "new").exists()


def test_auto_takes_the_newest_checkpoint_or_begins_anew(tmp_path: Path) -> None:
    record(tmp_path, 3)
    assert start(tmp_path) is None  # cut off before its first checkpoint
    save(tmp_path, 2)
    save(tmp_path, 3)
    assert start(tmp_path) == 3


def test_a_checkpoint_of_this_folder_is_a_way_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "run", 5)
    early = save(tmp_path / "run", 2)
    save(tmp_path / "run", 4)
    assert start(tmp_path / "run", early) == 2
    monkeypatch.chdir(tmp_path)
    assert start(tmp_path / "run", "run/checkpoints/../checkpoints/step_000002") == 2


def test_another_runs_checkpoint_needs_a_folder_without_records(tmp_path: Path) -> None:
    other = save(tmp_path / "other", 2)
    assert start(tmp_path / "new", other) == 2
    record(tmp_path / "run", 5)
    with pytest.raises(ConfigError, match=r"run holds another run and .* starts from .*other.*: give another --run-f"):
        start(tmp_path / "run", other)
    save(tmp_path / "run", 4)
    with pytest.raises(ConfigError, match=r"checkpoint\.resume=auto goes on with that run; otherwise give another"):
        start(tmp_path / "run", other)


def test_a_superseded_checkpoint_is_of_another_course_of_the_run(tmp_path: Path) -> None:
    record(tmp_path / "run", 3)
    save(tmp_path / "run", 3)
    save(tmp_path / "run", 2)  # sets step 3 aside
    aside = tmp_path / "run" / "checkpoints" / "superseded_step_000003"
    with pytest.raises(ConfigError, match="holds another run"):
        start(tmp_path / "run", aside)
    assert start(tmp_path / "new", aside) == 3


@pytest.mark.parametrize("has", [record, save], ids=["records", "a checkpoint"])
def test_never_refuses_an_occupied_folder(tmp_path: Path, has: Any) -> None:
    has(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"checkpoint\.resume says that this one starts anew"):
        start(tmp_path, "never")


def test_a_finished_run_without_checkpoints_is_not_replaced(tmp_path: Path) -> None:
    record(tmp_path, 5)
    (tmp_path / "final").mkdir()
    with pytest.raises(ConfigError, match="finished run of 5 steps without checkpoints"):
        start(tmp_path)
    save(tmp_path, 5)
    assert start(tmp_path) == 5


def test_a_checkpoint_that_is_not_whole_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        start(tmp_path / "run", tmp_path / "nowhere")
    folder = save(tmp_path, 2)
    os.truncate(folder / store.TRAINER_STATE, 5)
    with pytest.raises(ConfigError, match=rf"{folder} is damaged: trainer_state.json has 5 bytes"):
        start(tmp_path)


def test_damaged_or_lost_records_are_named(tmp_path: Path) -> None:
    save(tmp_path, 4)
    record(tmp_path, 3)
    with pytest.raises(ConfigError, match=r"metrics.jsonl ends at step 3 but .*step_000004 is of step 4"):
        start(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("nonsense\n")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl:1: not JSON"):
        start(tmp_path)


def test_other_settings_are_named_and_harmless_ones_pass(tmp_path: Path) -> None:
    save(tmp_path, 2)
    with pytest.raises(ConfigError, match=r"other settings of optimizer\.lr, rollout\.prompts_per_step: "):
        start(tmp_path, optimizer={"lr": 0.5}, rollout={"prompts_per_step": 8})
    assert start(tmp_path, steps=7, rollout={"urls": ["http://x"], "max_retries": 9}, reward={"workers": 3}) == 2


def test_every_deadline_may_change() -> None:
    def with_other_deadlines(tree: dict[str, Any]) -> dict[str, Any]:
        return {
            key: with_other_deadlines(value) if isinstance(value, dict) else value + 1 if "seconds" in key else value
            for key, value in tree.items()
        }

    old = config().model_dump(mode="json")
    assert with_other_deadlines(old) != old and changed_fields(old, with_other_deadlines(old)) == []


def test_a_changed_loss_is_named_field_by_field() -> None:
    old = config(loss={"name": "kl_cov"}).model_dump(mode="json")
    new = config(loss={"name": "clip_cov"}).model_dump(mode="json")
    assert changed_fields(old, old) == []
    assert {"loss.name", "loss.kl_cov_ratio", "loss.clip_cov_ratio"} <= set(changed_fields(old, new))


def test_fewer_steps_than_are_done_are_refused(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save(tmp_path, 8)
    record(tmp_path, 8)
    with pytest.raises(ConfigError, match=r"steps 7, but .*step_0*8 has 8 steps done: ask for 8 or more"):
        start(tmp_path, steps=7)
    assert start(tmp_path, steps=8) == 8
    assert start(tmp_path, str(tmp_path / "checkpoints" / "step_000005"), steps=7) == 5


def test_the_lock_keeps_a_second_run_out_and_names_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    with locked(folder):
        before = (folder / "run.lock").read_text()
        with pytest.raises(ConfigError, match=rf"{folder} is in use by process {os.getpid()} on .*--run-folder"):
            locked(folder).__enter__()
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on "):
            check_free(folder)
        assert (folder / "run.lock").read_text() == before
        with locked(tmp_path / "runs" / "b"):
            pass
    check_free(folder)
    with locked(folder):
        pass


def test_a_rank_that_sees_another_folder_of_that_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "SHARED_SECONDS", 0.3)
    with locked(tmp_path / "shared") as holder:
        check_shared(tmp_path / "shared", holder)
        for folder in ("another", "old"):  # a disk of its own; one on which a run began itself
            if folder == "old":
                (tmp_path / folder).mkdir()
                (tmp_path / folder / "run.lock").write_text("77 on here\n")
            message = rf"{folder} on .* process {holder.strip()}: on several nodes it must be on a disk that all of"
            with pytest.raises(ConfigError, match=message):
                check_shared(tmp_path / folder, holder)


def test_a_shared_folder_may_show_the_lock_late(tmp_path: Path) -> None:
    with locked(tmp_path) as holder:
        (tmp_path / "run.lock").rename(tmp_path / "not-yet")
        appears = threading.Timer(0.5, (tmp_path / "not-yet").rename, [tmp_path / "run.lock"])
        appears.start()
        check_shared(tmp_path, holder)
        assert not (tmp_path / "not-yet").exists()  # it waited


def test_looking_whether_a_folder_is_free_makes_nothing(tmp_path: Path) -> None:
    check_free(tmp_path)
    check_free(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_run_itself_passes_the_lock_unchanged(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"), locked(tmp_path):
        raise OSError("disk full")
    check_free(tmp_path)


def test_a_killed_holder_leaves_the_folder_free(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from pyrl.run_folder import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"in use by process {holder.pid} on "):
            locked(tmp_path).__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait(20)
        with locked(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=rf"run folder {tmp_path}/file cannot be used.*--run-folder"):
        locked(tmp_path / "file").__enter__()
