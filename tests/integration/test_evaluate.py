"""`pyrl evaluate` killed with its own vLLM server and called again on a given one: equal to the unbroken evaluation."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pyrl.evaluation.config import load_evaluation
from pyrl.evaluation.servers import start_servers
from pyrl.evaluation.store import Sample, read_samples
from pyrl.quickstart.model import write_model
from pyrl.quickstart.task import write_task
from tests import program

SAMPLES, ROWS, TOKENS = 8, 40, 64
LINES_BEFORE_THE_KILL = 20
DEADLINE_SECONDS = 300.0


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    write_model(folder / "model", seed=0)
    write_task(folder / "data", seed=0, train=ROWS, validation=10, demonstrated=1, demonstrations=10)
    benchmark = {"source": "train.jsonl", "samples": SAMPLES, "temperature": 1.0, "max_tokens": 40,
                 "template": "plain", "grader": "ring_walk"}  # fmt: skip
    tree = {
        "model": str(folder / "model"),
        "data_dir": str(folder / "data"),
        "benchmarks": {"sums": benchmark},
        "server": {"dtype": "fp32", "threads": 1, "max_num_seqs": 8},
    }
    path = folder / "sums.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def given(config: Path) -> Iterator[str]:
    """The override that names a running server."""
    with start_servers(load_evaluation(config, []), config.parent, TOKENS) as pool:
        yield f"server.urls={json.dumps(pool.wait_ready())}"


def start(config: Path, folder: Path, *overrides: str) -> program.Program:
    arguments = ["evaluate", str(config), *overrides, "--folder", str(folder)]
    return program.start(arguments, config.parent / f"{folder.name}.log")


def finish(config: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    process = start(config, folder, *overrides)
    assert process.wait(DEADLINE_SECONDS) == 0, (config.parent / f"{folder.name}.log").read_text()[-3000:]
    return json.loads((folder / "scores.json").read_text())


def lines(folder: Path) -> int:
    path = folder / "samples.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def texts(samples: dict[Any, Sample]) -> dict[Any, tuple[str, str]]:
    return {key: (row["text"], row["verdict"]) for key, row in samples.items()}


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_ends_as_the_unbroken_one(config: Path, given: str) -> None:
    whole, broken = config.parent / "whole", config.parent / "broken"
    scores = finish(config, whole, given)
    process, deadline = start(config, broken), time.monotonic() + DEADLINE_SECONDS
    while lines(broken) < LINES_BEFORE_THE_KILL:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = read_samples(broken)
    assert LINES_BEFORE_THE_KILL <= len(before) < ROWS * SAMPLES
    assert not (broken / "scores.json").exists()

    assert finish(config, broken, given) == scores
    after = read_samples(broken)
    assert {key: after[key]["text"] for key in before} == {key: row["text"] for key, row in before.items()}
    assert texts(after) == texts(read_samples(whole)) and len(after) == ROWS * SAMPLES
    assert len({text for text, _ in texts(after).values()}) > SAMPLES
    assert (broken / "report.html").read_text().count("<details data-") == (whole / "report.html").read_text().count(
        "<details data-"
    )
