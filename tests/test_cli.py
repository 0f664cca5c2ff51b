"""Exit codes and messages of the command line: 2 for bad input, and nothing written."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from pyrl.cli import loading


def pyrl(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyrl", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_help_names_the_commands_that_work(tmp_path: Path) -> None:
    text = pyrl("--help", cwd=tmp_path).stdout
    commands = ("train", "quickstart", "evaluate", "analyze", "study", "doctor", "convert")
    assert all(command in text for command in commands)


@pytest.mark.parametrize(
    ("yaml", "overrides", "message"),
    [
        ("model: {path: m}\ndata: {path: d}\nstepz: 3\n", [], "stepz: unknown key; did you mean 'steps'?"),
        ("model: {path: m}\ndata: {path: d}\n", ["rollout.prompts=3"], "rollout.prompts: unknown key"),
        ("model: {path: m}\ndata: {path: d}\n", ["steps=many"], "steps: Input should be a valid integer"),
        ("model: {path: m}\n", [], "data: required but not given"),
        ("model: {path: m}\ndata: {path: d}\n", ["steps"], "not of the form key=value"),
        ("model: {path: m}\ndata: {path: d}\n", [], "model.path m is not a folder"),
        ("- 1\n", [], "not a mapping"),
    ],
)
def test_bad_input_is_named_and_writes_nothing(
    tmp_path: Path, yaml: str, overrides: list[str], message: str
) -> None:
    (tmp_path / "run.yaml").write_text(yaml)
    result = pyrl("train", "run.yaml", *overrides, "--run-folder", "out", cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_missing_config_file(tmp_path: Path) -> None:
    result = pyrl("train", "nowhere.yaml", cwd=tmp_path)
    assert result.returncode == 2 and "nowhere.yaml does not exist" in result.stderr


def test_garbage_is_collected_again_after_loading_and_after_loading_fails() -> None:
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), loading():
        raise ImportError
    assert gc.isenabled()


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """/dev/full, to which nothing can be written, stands where the analysis writes its page."""
    rows = [f"{i},{1 / (i + 1)},{i / 50}" for i in range(40)]
    (tmp_path / "run.csv").write_text("\n".join(["step,entropy,reward", *rows]))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html.tmp").symlink_to("/dev/full")
    ended = pyrl("analyze", "run.csv", "--out", "out", cwd=tmp_path)
    assert ended.returncode == 1
    said = ended.stderr.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("failed on rank 0: [Errno 28] No space left on device"), said
    assert "Free some space" in said[0]
