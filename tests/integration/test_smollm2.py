"""Real weights: two steps of configs/smollm2-135m_dapo-math.yaml on CPU, made small; on real data where there is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.parquet
import pytest

from tests import program
from tests.data import conftest as samples

OVERRIDES = [
    "steps=2",
    "rollout.prompts_per_step=1",
    "rollout.samples_per_prompt=2",
    "rollout.max_response_tokens=24",
    "rollout.dynamic_sampling.enabled=false",  # a model this small solves none of them
    "algorithm.updates_per_rollout=1",
    "data.max_prompt_tokens=128",
    "reward.workers=1",
    "checkpoint.every=0",
    "checkpoint.export_hf=false",
]


def prompts(folder: Path) -> Path:
    """The first questions of DAPO-Math-17k, or a few rows in its schema."""
    if data := os.environ.get("PYRL_DATA_DIR"):
        first = pyarrow.parquet.read_table(Path(data) / "DAPO-Math-17k.parquet").slice(0, 64)
        pyarrow.parquet.write_table(first, folder / "first.parquet")
        return folder / "first.parquet"
    questions = [f"What is {i} times {i + 7}? Put the answer in \\boxed{{}}." for i in range(2, 10)]
    truths = [str(i * (i + 7)) for i in range(2, 10)]
    rows = [samples.row(q, t, index=t) for q, t in zip(questions, truths, strict=True)]
    return samples.write(folder / "sample.parquet", rows)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_steps_on_mathematics(smollm2: Path, tmp_path: Path) -> None:
    paths = [f"model.path={smollm2}", f"data.path={prompts(tmp_path)}"]
    arguments = ["train", "configs/smollm2-135m_dapo-math.yaml", *paths, *OVERRIDES]
    code, said = program.run([*arguments, "--run-folder", str(tmp_path / "run")], seconds=550)
    assert code == 0, said[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2]
    for row in rows:
        assert row["verdicts_right"] + row["verdicts_wrong"] + row["verdicts_unjudged"] == 2
        assert 0 < row["entropy"] < 5
        assert row["logprob_gap_max"] < 1e-3  # the rollout engine and the learner are one policy
        assert row["response_length_max"] <= 24 and row["truncated_fraction"] > 0
    texts = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert all("boxed" in t["prompt"] for t in texts)
