"""Real weights: two steps of an arm of configs/study/smollm2.yaml on CPU, made small, and the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pyrl.reward.reasoning_gym import write_rows
from tests import program

STEPS, QUESTIONS, SAMPLES = 2, 4, 2
SMALL = {
    "steps": STEPS,
    "rollout": {"prompts_per_step": 2, "samples_per_prompt": 2, "max_response_tokens": 24},
    "algorithm": {"updates_per_rollout": 2},
    "validation": {"every": STEPS, "final_samples_per_prompt": SAMPLES, "max_prompts": QUESTIONS},
    "instruments": {"entropy_change_every": 1},
    "checkpoint": {"every": 0},  # gathering 1.6 GB of weights and optimizer state doubles the memory
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_steps_of_kl_cov(smollm2: Path, tmp_path: Path) -> None:
    study = yaml.safe_load(Path("configs/study/smollm2.yaml").read_text())
    for seed, name in enumerate(("path", "validation_path")):
        file = tmp_path / f"{name}.jsonl"
        write_rows(file, "chain_sum", 8, seed, min_terms=2, max_terms=3, max_digits=2)
        study["run"]["data"][name] = str(file)
    study["run"]["model"] = {"path": str(smollm2)}
    for section, values in SMALL.items():
        study["run"][section] = {**study["run"].get(section, {}), **values} if isinstance(values, dict) else values
    study |= {"seeds": [0], "baseline": "kl_cov", "one_law": [], "arms": {"kl_cov": study["arms"]["kl_cov"]}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    arguments = ["study", str(tmp_path / "study.yaml"), "--folder", str(tmp_path / "out")]
    code, said = program.run(arguments, seconds=850)
    assert code == 0, said[-3000:]

    run = tmp_path / "out" / "runs" / "kl_cov" / "seed_0"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    for row in rows[1:]:
        assert row["verdicts_right"] + row["verdicts_wrong"] + row["verdicts_unjudged"] == 4
        assert 0 < row["entropy"] < 5 and row["selected_tokens"] >= 2  # one or more in each of two updates
        assert row["logprob_gap_max"] < 1e-3  # the rollout engine and the learner are one policy
    answered = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert [row["samples"] for row in answered if row["step"] == STEPS] == [SAMPLES] * QUESTIONS
    numbers = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [arm["arm"] for arm in numbers["arms"]] == ["kl_cov"] and numbers["missing_runs"] == []
