"""`pyrl quickstart` from random weights to the report, with few steps: the same code, server and files."""

from __future__ import annotations

import html
import os
from functools import partial
from pathlib import Path
from statistics import fmean

import psutil
import pytest
import yaml
from transformers import AutoModelForCausalLM

from pyrl.config import ConfigError
from pyrl.quickstart import run as quickstart
from pyrl.quickstart.task import RingWalk
from pyrl.run_folder import LOCK
from tests.run_job import rows

CONFIG = Path("configs/quickstart.yaml")
FEW = ["steps=3", "rollout.prompts_per_step=16", "rollout.samples_per_prompt=8", "rollout.threads=1",
       "algorithm.updates_per_rollout=2", "validation.every=2", "validation.max_prompts=10"]  # fmt: skip
WALK = RingWalk(places=8, moves=2, walls=1, gates=2, slip=0.1)
BEFORE_ANY_UPDATE = ("entropy", "reward_mean", "response_tokens", "verdicts_right", "logprob_gap_max")


def servers() -> set[int]:
    processes = psutil.Process().children(recursive=True)
    return {process.pid for process in processes if "vllm" in " ".join(process.cmdline())}


@pytest.mark.slow
def test_the_methods_are_trained_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Small enough that some answers are right after few supervised steps: without a reward no method moves.
    for name, size in {"TRAIN_PROMPTS": 100, "VALIDATION_PROMPTS": 40, "DEMONSTRATED_PROMPTS": 150}.items():
        monkeypatch.setattr(quickstart, name, size)
    monkeypatch.setattr(quickstart, "DEMONSTRATIONS", 8000)
    of_walk = {"write_files": {"task": WALK}, "write_model": {"task": WALK}}
    for name, arguments in (of_walk | {"supervised_phase": {"steps": 120, "target_loss": None}}).items():
        monkeypatch.setattr(quickstart, name, partial(getattr(quickstart, name), **arguments))
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "quickstart"
    before = servers()  # other tests' servers live as long as the test session
    quickstart.run_quickstart(folder, CONFIG, FEW, workers=2)
    printed = capsys.readouterr().out
    assert servers() == before

    runs = {name: rows(folder / name) for name in ("grpo", "clip_cov")}
    for name, recorded in runs.items():
        assert [row["step"] for row in recorded] == [0, 1, 2, 3]
        assert [row["validation_n"] for row in recorded] == [10 * 4, None, 10 * 4, 10 * 16]
        assert all(row["verdicts_right"] + row["verdicts_wrong"] == 16 * 8 for row in recorded[1:])
        assert {sample["step"] for sample in rows(folder / name, "samples.jsonl")} == {1, 2, 3}
        AutoModelForCausalLM.from_pretrained(folder / name / "final")
    grpo, clip_cov = runs.values()
    assert grpo[0]["validation_reward_mean"] == clip_cov[0]["validation_reward_mean"]
    for metric in BEFORE_ANY_UPDATE:  # one seed, one start, one set of prompts: the methods part at the first update
        assert grpo[1][metric] == clip_cov[1][metric]
    assert grpo[3]["entropy"] != clip_cov[3]["entropy"]
    assert all(row["selected_tokens"] for row in clip_cov[1:]) and not any(row["selected_tokens"] for row in grpo[1:])
    settings = [yaml.safe_load((folder / name / "config.yaml").read_text()) for name in runs]
    assert {key for key in settings[0] if settings[0][key] != settings[1][key]} == {"loss"}

    for recorded in runs.values():
        entropies = [row["entropy"] for row in recorded[1:]]
        assert f"{fmean(entropies):.4g} -> {fmean(entropies):.4g}" in printed  # of all steps, there being few
    report = (folder / "report.html").read_text()
    said = "Clip-Cov is right on "
    assert said in report and said in printed and " of the two hidden gates, GRPO " in report
    for pair in ("grpo, step 0 -&gt; 3", "clip_cov, step 0 -&gt; 3", "grpo -&gt; clip_cov, step 3"):
        assert pair in report and html.unescape(pair) in printed
    assert "<svg" in report and "grpo" in report and "clip_cov" in report and "src=\"http" not in report
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert str(folder / "report.html") in printed and str(folder / "report.png") in printed


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years")
    with pytest.raises(ConfigError, match=rf"--folder {tmp_path} holds files that no quickstart wrote"):
        quickstart.run_quickstart(tmp_path, CONFIG, FEW)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.fixture
def without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "train_and_compare", lambda configs, folder, workers: (folder / "grpo").mkdir())


@pytest.mark.usefixtures("without_training")
def test_an_earlier_quickstart_makes_room(tmp_path: Path) -> None:
    for _ in range(2):
        quickstart.run_quickstart(tmp_path, CONFIG, FEW)
        assert sorted(p.name for p in tmp_path.iterdir()) == [quickstart.MARKER, "grpo", LOCK]
        (tmp_path / "report.html").write_text("yesterday's")
        (tmp_path / "grpo" / "metrics.jsonl").write_text("{}")


def test_a_running_quickstart_keeps_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one is refused while the first works, and changes nothing."""

    def work(configs: dict, folder: Path, workers: int) -> None:
        (folder / "grpo").mkdir()
        with pytest.raises(ConfigError, match=rf"{folder} is in use by process {os.getpid()} .*give another --folder"):
            quickstart.run_quickstart(folder, CONFIG, FEW)
        assert sorted(p.name for p in folder.iterdir()) == [quickstart.MARKER, "grpo", LOCK]

    monkeypatch.setattr(quickstart, "train_and_compare", work)
    quickstart.run_quickstart(tmp_path / "new", CONFIG, FEW)
    assert (tmp_path / "new" / "grpo").exists()


@pytest.mark.usefixtures("without_training")
def test_bad_settings_are_refused_before_the_folder_is_emptied(tmp_path: Path) -> None:
    quickstart.run_quickstart(tmp_path, CONFIG, FEW)
    (tmp_path / "report.html").write_text("yesterday's")
    with pytest.raises(ConfigError, match="`pyrl quickstart` sets it itself"):
        quickstart.run_quickstart(tmp_path, CONFIG, ["model.path=elsewhere"])
    with pytest.raises(ConfigError, match="unknown key"):
        quickstart.run_quickstart(tmp_path, CONFIG, ["nonsense=1"])
    assert (tmp_path / "report.html").read_text() == "yesterday's"
