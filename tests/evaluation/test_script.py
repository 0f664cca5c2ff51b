"""scripts/evaluate_aime.sh: which model of a run it takes. pyrl itself is replaced by a recorder of its arguments."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "evaluate_aime.sh"


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nif [ "$3" = convert ]; then mkdir -p "$5"; fi\n')
    path.chmod(0o755)
    return path


def calls(recorder: Path, *arguments: str) -> list[str]:
    environment = os.environ | {"PYTHON": str(recorder)}
    subprocess.run([SCRIPT, *arguments], env=environment, check=True)
    log = recorder.parent / "calls"
    text = log.read_text().splitlines()
    log.unlink()
    return text


def with_files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def evaluation(model: Path, folder: Path, *overrides: str) -> str:
    config = SCRIPT.parents[1] / "configs" / "eval" / "aime.yaml"
    return " ".join(["-m pyrl evaluate", str(config), f"model={model}", *overrides, f"--folder {folder}"])


def test_the_final_policy_comes_before_checkpoints(tmp_path: Path, recorder: Path) -> None:
    run = with_files(tmp_path / "run", "checkpoints/step_000004/manifest.json", "final/config.json")
    wanted = evaluation(run / "final", run / "evaluations/aime-final", "only=[aime24]")
    assert calls(recorder, f"{run}/", "only=[aime24]") == [wanted]


def test_a_run_that_goes_on_gives_its_newest_checkpoint(tmp_path: Path, recorder: Path) -> None:
    run = with_files(tmp_path / "run", "final/config.json", "checkpoints/step_000004/manifest.json")
    ended = (run / "final/config.json").stat().st_mtime
    newer = with_files(run / "checkpoints/step_000006", "manifest.json")
    os.utime(newer, (ended + 60, ended + 60))
    assert calls(recorder, str(run))[-1] == evaluation(run / "hf/step_000006", run / "evaluations/aime-step_000006")


def test_a_run_without_a_final_policy_gives_its_newest_checkpoint(tmp_path: Path, recorder: Path) -> None:
    run = with_files(tmp_path / "run", *(f"checkpoints/step_{n:06}/manifest.json" for n in (90, 100)))
    model, folder = run / "hf/step_000100", run / "evaluations/aime-step_000100"
    first = f"-m pyrl convert {run}/checkpoints/step_000100 {model}"
    assert calls(recorder, str(run)) == [first, evaluation(model, folder)]
    assert calls(recorder, str(run)) == [evaluation(model, folder)]  # written once


def test_a_checkpoint_and_a_model_are_taken_as_given(tmp_path: Path, recorder: Path) -> None:
    run = with_files(tmp_path / "run", "final/config.json", "checkpoints/step_000004/manifest.json")
    convert, evaluate = calls(recorder, f"{run}/checkpoints/step_000004")
    assert convert == f"-m pyrl convert {run}/checkpoints/step_000004 {run}/hf/step_000004"
    assert evaluate == evaluation(run / "hf/step_000004", run / "evaluations/aime-step_000004")
    model = with_files(tmp_path / "model", "config.json")
    assert calls(recorder, str(model)) == [evaluation(model, model / "evaluations/aime-model")]


def test_a_folder_with_nothing_to_evaluate_is_refused(tmp_path: Path, recorder: Path) -> None:
    environment = os.environ | {"PYTHON": str(recorder)}
    for arguments, message in (([str(tmp_path)], "holds no model, no final/ and no checkpoint"), ([], "Usage:")):
        ended = subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True)
        assert ended.returncode == 2 and message in ended.stderr
