"""`pyrl train` as a user runs it: real learner, real server, real graders; killed, resumed, rewound, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from pyrl.config import ConfigError, parse_config
from pyrl.evaluation.store import read_samples
from pyrl.quickstart.task import SOURCE
from pyrl.stages.evaluate import load_settings
from tests import program
from tests.run_job import Job, differences, foreign_lines, records, rows, same_weights


def kill_when(job: Job, folder: Path, condition, *overrides: str) -> None:
    process = job.start(folder, *overrides)
    assert process.wait_until(lambda process: condition()), process.log()
    assert process.kill()


def has_records(folder: Path, count: int) -> bool:
    metrics = folder / "metrics.jsonl"
    return metrics.exists() and metrics.read_bytes().count(b"\n") >= count


def test_a_run_leaves_what_it_promises(job: Job, unbroken: Path) -> None:
    recorded = rows(unbroken)
    assert [r["step"] for r in recorded] == [1, 2, 3, 4, 5]
    assert [r["policy_version"] for r in recorded] == [0, 1, 2, 3, 4]
    assert [r["gradient_step"] for r in recorded] == [2, 4, 6, 8, 10]
    for row in recorded:
        assert row["verdicts_right"] + row["verdicts_wrong"] == 64 and row["verdicts_unjudged"] == 0
        assert row["reward_mean"] == row["verdicts_right"] / 64
        assert row["reward_by_source"] == {SOURCE: row["reward_mean"]}
        assert 0 < row["entropy"] < 3.5 and row["selected_tokens"] > 0
        assert row["logprob_gap_max"] < 1e-3
        assert row["validation_reward_mean"] is None
    assert len({r["entropy"] for r in recorded}) == 5  # the policy moved
    samples = rows(unbroken, "samples.jsonl")
    assert {s["step"] for s in samples} == {1, 2, 3, 4, 5} and all(s["prompt"] for s in samples)
    kept = sorted(p.name for p in (unbroken / "checkpoints").iterdir())
    assert kept == ["step_000004", "step_000005"]
    start = AutoModelForCausalLM.from_pretrained(job.config.model.path)
    assert AutoTokenizer.from_pretrained(unbroken / "final").eos_token_id == 0
    assert AutoModelForCausalLM.from_pretrained(unbroken / "final").num_parameters() == start.num_parameters()
    assert list(unbroken.glob("events.out.tfevents.*")) and (unbroken / "config.yaml").exists()
    assert "<svg" in (unbroken / "report.html").read_text()
    assert not (unbroken / "superseded").exists()


def test_the_terminal_shows_our_lines_alone(unbroken: Path) -> None:
    terminal = (unbroken / "train.log").read_text()
    assert foreign_lines(terminal) == []
    first, *_, last = terminal.splitlines()
    assert first.endswith("loading PyTorch and the other libraries") and "step 5/5" in last


def test_a_checkpoint_becomes_the_models_folder_that_the_run_wrote(unbroken: Path, tmp_path: Path) -> None:
    command = ["convert", str(unbroken / "checkpoints" / "step_000005"), str(tmp_path / "model")]
    code, said = program.run(command)
    assert code == 0 and foreign_lines(said) == []
    assert same_weights(tmp_path / "model", unbroken / "final")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").eos_token_id == 0
    code, said = program.run(command)
    assert code == 2 and "exists: remove it or name another folder" in said


def test_the_same_seed_twice_is_equal(job: Job, unbroken: Path) -> None:
    job.finish(job.folder / "again")
    assert differences(unbroken, job.folder / "again") == []


def test_killed_in_a_step_and_resumed_is_equal(job: Job, unbroken: Path) -> None:
    folder = job.folder / "killed-in-step"
    kill_when(job, folder, lambda: has_records(folder, 2))
    job.finish(folder)
    assert "resumed from" in (folder / "train.log").read_text()
    assert differences(unbroken, folder) == []


def test_killed_in_a_checkpoint_and_resumed_is_equal(job: Job, unbroken: Path) -> None:
    folder = job.folder / "killed-in-checkpoint"
    second = folder / "checkpoints" / ".writing_step_000002"
    kill_when(job, folder, second.exists)
    job.finish(folder)
    assert differences(unbroken, folder) == []
    (given_up,) = (folder / "superseded").iterdir()  # the record of step 2, done again from checkpoint 1
    assert [row["step"] for row in rows(given_up)] == [2]


def test_a_run_goes_back_and_keeps_what_it_gives_up(job: Job, unbroken: Path) -> None:
    folder = job.folder / "rewound"
    shutil.copytree(unbroken, folder)
    before = rows(folder)
    job.finish(folder, f"checkpoint.resume={folder}/checkpoints/step_000004")
    assert differences(unbroken, folder) == []
    assert rows(folder / "superseded" / "from_step_000005") == before[4:]
    assert foreign_lines((folder / "train.log").read_text()) == []
    kept = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert kept == ["step_000004", "step_000005", "superseded_step_000005"]


@pytest.mark.parametrize(
    ("override", "message"),
    [("optimizer.lr=0.5", "other settings of optimizer.lr"), ("checkpoint.resume=never", "holds another run")],
)
def test_a_run_that_would_spoil_another_is_refused(job: Job, unbroken: Path, override: str, message: str) -> None:
    before = {p: p.stat().st_mtime_ns for p in unbroken.rglob("*")}
    code, said = program.run(job.arguments(unbroken, override))
    assert code == 2 and message in said
    assert {p: p.stat().st_mtime_ns for p in unbroken.rglob("*")} == before


def test_dynamic_sampling_with_validation_killed_and_resumed(job: Job) -> None:
    """Validation is taken at its steps and changes nothing else; refills are repeated exactly after a kill."""
    sampling = ["rollout.dynamic_sampling.enabled=true", "rollout.dynamic_sampling.max_refills=2", "steps=4"]
    held_out = job.folder / "data" / "validation.jsonl"
    validation = [f"data.validation_path={held_out}", "validation.every=3", "validation.samples_per_prompt=2"]
    validated, plain = job.folder / "validated", job.folder / "not-validated"
    kill_when(job, validated, lambda: has_records(validated, 3), *sampling, *validation)  # steps 0, 1, 2
    job.finish(validated, *sampling, *validation)
    job.finish(plain, *sampling)

    recorded = rows(validated)
    assert [row["step"] for row in recorded] == [0, 1, 2, 3, 4]
    measured = {row["step"]: row for row in recorded if row["validation_n"] is not None}
    assert list(measured) == [0, 3, 4]
    for row in measured.values():
        assert row["validation_n"] == 20 * 2 and row["validation_unjudged"] == 0
        assert row["validation_reward_mean"] * row["validation_n"] == pytest.approx(
            round(row["validation_reward_mean"] * row["validation_n"]), abs=1e-9
        )
    consumed = 0
    for row in recorded[1:]:
        asked, consumed = row["prompts_consumed"] - consumed, row["prompts_consumed"]
        assert asked == row["groups_kept"] + row["groups_dropped_uniform"] and row["groups_dropped_unjudged"] == 0
        assert row["verdicts_right"] + row["verdicts_wrong"] == 4 * asked and row["groups_failed"] == 0
        assert row["groups_kept"] <= 16 and row["refills"] <= 2
        assert row["groups_kept"] == 16 or row["refills"] == 2
        assert 0 < row["reward_mean_kept"] < 1
    assert sum(row["groups_dropped_uniform"] for row in recorded[1:]) > 0  # there was something to drop

    def training(run: Path) -> list[dict]:
        kept = [row for row in records(run) if row["step"] > 0]
        return [{name: row[name] for name in row if not name.startswith("validation")} for row in kept]

    assert training(validated) == training(plain)
    assert (validated / "samples.jsonl").read_bytes() == (plain / "samples.jsonl").read_bytes()


def evaluated(job: Job) -> list[str]:
    """Overrides that evaluate twice a run and at its ends, on questions of its own task."""
    path = job.folder / "evaluation.yaml"
    data = job.config.data.path
    benchmark = {"source": str(data), "samples": 2, "temperature": 1.0, "max_tokens": 10, "template": "plain",
                 "grader": "ring_walk"}  # fmt: skip
    path.write_text(yaml.safe_dump({"benchmarks": {"task": benchmark}, "max_questions": 20}))
    return ["evaluation.every=2", f"evaluation.config={path}"]


@pytest.mark.slow
def test_evaluations_on_the_way_change_nothing_in_the_run_and_outlive_a_kill(job: Job, unbroken: Path) -> None:
    folder = job.folder / "evaluated"
    kill_when(job, folder, lambda: has_records(folder, 3), *evaluated(job))
    # as if it had been killed before these were graded
    (folder / "evaluations" / "step_000002" / "scores.json").unlink(missing_ok=True)
    job.finish(folder, *evaluated(job))
    assert differences(unbroken, folder) == []
    steps = [f"step_00000{n}" for n in (0, 2, 4, 5)]
    names = [each.name for each in (folder / "evaluations").iterdir()]
    assert sorted(name for name in names if not name.startswith("superseded")) == steps
    scores = {name: json.loads((folder / "evaluations" / name / "scores.json").read_text()) for name in steps}
    tasks = {name: found["benchmarks"]["task"] for name, found in scores.items()}
    assert all(task["rows"] == 40 and task["unjudged"] == 0 and task["missing"] == 0 for task in tasks.values())
    recorded = [row for row in rows(folder) if "evaluation_step" in row]
    assert recorded[-1]["step"] == recorded[-1]["evaluation_step"] == 5
    for row in recorded:
        mean = tasks[f"step_00000{row['evaluation_step']}"]["avg_at_k"]["mean"]
        assert row["evaluation_avg_at_k"] == {"task": mean} and row["evaluation_step"] <= row["step"]
    assert all(row["seconds_evaluation"] > 0 for row in rows(folder) if row["step"] in (2, 4, 5))
    first, last = (read_samples(folder / "evaluations" / name) for name in (steps[0], steps[-1]))
    assert {key: row["seed"] for key, row in first.items()} == {key: row["seed"] for key, row in last.items()}
    assert {row["step"] for row in last.values()} == {5}
    assert [row["text"] for row in first.values()] != [row["text"] for row in last.values()]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["benchmarks.task.max_tokens=30"], "needs .* tokens with its response"),
        (["benchmarks.task.sample=2"], "benchmarks.task.sample: unknown key"),
        (["benchmarks.task.grader=maths"], "'maths' is unknown"),
    ],
)
def test_an_evaluation_that_could_not_take_place_is_refused_at_the_start(
    job: Job, overrides: list[str], message: str
) -> None:
    config = parse_config(
        job.config.model_dump(mode="json")
        | {"evaluation": {"every": 2, "config": evaluated(job)[1].partition("=")[2], "overrides": overrides}},
        origin="job",
    )
    with pytest.raises(ConfigError, match=message):
        load_settings(config, AutoTokenizer.from_pretrained(config.model.path))


def test_evaluations_need_benchmarks(job: Job) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.every without evaluation\.config"):
        parse_config(job.config.model_dump(mode="json") | {"evaluation": {"every": 2}}, origin="job")
