"""`pyrl evaluate` against scripted servers: what is stored, what goes on, what is refused, what ends it early."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pyrl.analysis.evaluation_page import pick, shorten, write_evaluation_page
from pyrl.config import ConfigError
from pyrl.evaluation.config import EvaluationConfig
from pyrl.evaluation.errors import EvaluationError
from pyrl.evaluation.generate import sample_seed
from pyrl.evaluation.run import regrade_folder, run_evaluation
from pyrl.evaluation.store import read_samples, weights_fingerprint
from pyrl.evaluation.tables import score_table
from pyrl.quickstart.model import build_tokenizer, write_model
from pyrl.rollout.server import ServerError
from tests.rollout.fake_vllm import FakeVLLM, answer

QUESTIONS, SAMPLES = 6, 3
END = 0
TOKENIZER = build_tokenizer()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture
def server() -> Iterator[FakeVLLM]:
    with FakeVLLM(script=add) as fake:
        yield fake


def add(body: dict[str, Any], count: int) -> tuple[int, Any]:
    """The right walk of one move for a prompt `start goal :`, a wrong one for an odd seed."""
    start, goal, _ = TOKENIZER.decode(body["token_ids"]).split()
    move = (int(goal) - int(start)) % 24
    said = f"+{move} {goal}" if body["sampling_params"]["seed"] % 2 == 0 else f"+{move} {start}"
    return 200, answer(body, tokens=[*TOKENIZER.encode(said, add_special_tokens=False), END])


def write_questions(folder: Path, count: int = QUESTIONS) -> None:
    rows = []
    for i in range(count):
        start, goal = 1 + i, 23 - i
        truth = json.dumps({"places": 24, "moves": 1, "start": start, "goal": goal, "walls": []})
        prompt = [{"role": "user", "content": f"{start} {goal} :"}]
        rows.append({"data_source": "sums", "prompt": prompt, "reward_model": {"ground_truth": truth},
                     "extra_info": {"index": i}})  # fmt: skip
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def settings(model: Path, folder: Path, server: FakeVLLM, **changes: Any) -> EvaluationConfig:
    write_questions(folder)
    benchmark = {"source": "sums.jsonl", "samples": SAMPLES, "temperature": 0.6, "max_tokens": 8,
                 "template": "plain", "grader": "ring_walk"}  # fmt: skip
    tree = {
        "model": model,
        "data_dir": folder,
        "benchmarks": {"sums": benchmark | changes.pop("benchmark", {})},
        "server": {"urls": [server.url], "recovery_timeout_seconds": 0.3, "max_retries": 1},
    }
    return EvaluationConfig.model_validate(tree | changes)


def even(question: int, sample: int) -> bool:
    return sample_seed(0, "sums", f"sums/{question}", sample) % 2 == 0


def test_an_evaluation_stores_grades_and_scores(model: Path, tmp_path: Path, server: FakeVLLM) -> None:
    folder = tmp_path / "out"
    scores = run_evaluation(settings(model, tmp_path, server), folder)["benchmarks"]["sums"]
    stored = read_samples(folder)
    assert set(stored) == {("sums", f"sums/{q}", s) for q in range(QUESTIONS) for s in range(SAMPLES)}
    right = [[even(q, s) for s in range(SAMPLES)] for q in range(QUESTIONS)]
    assert {key: row["verdict"] == "right" for key, row in stored.items()} == {
        ("sums", f"sums/{q}", s): right[q][s] for q in range(QUESTIONS) for s in range(SAMPLES)
    }
    assert scores["avg_at_k"]["mean"] == pytest.approx(sum(map(sum, right)) / (QUESTIONS * SAMPLES))
    assert scores["pass_at_k"]["3"]["mean"] == pytest.approx(sum(map(any, right)) / QUESTIONS)
    first = stored["sums", "sums/0", 0]
    assert first["text"] in ("+22 23", "+22 1") and first["tokens"] == 3 and first["finish_reason"] == "stop"
    assert first["grader"] == "ring_walk" and first["grader_version"] and first["reason"] and first["prompt_hash"]
    assert json.loads((folder / "scores.json").read_text())["benchmarks"]["sums"] == scores
    asked = [body["sampling_params"] for body in server.bodies]
    assert len(asked) == QUESTIONS * SAMPLES and len({each["seed"] for each in asked}) == len(asked)
    assert all((each["n"], each["temperature"], each["max_tokens"]) == (1, 0.6, 8) for each in asked)


def test_what_is_drawn_depends_on_the_names_alone(model: Path, tmp_path: Path, server: FakeVLLM) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    run_evaluation(settings(model, tmp_path, server), whole)
    run_evaluation(settings(model, tmp_path, server, max_questions=2, benchmark={"samples": 2}), part)
    everything, some = read_samples(whole), read_samples(part)
    assert len(some) == 4 and all(everything[key]["seed"] == row["seed"] for key, row in some.items())


def die_after(server: FakeVLLM, answers: int) -> None:
    """Every request after so many is refused as by a broken server."""
    server.script = lambda body, count: add(body, count) if count < answers else (500, "engine died")


def test_a_server_that_dies_half_way_costs_no_finished_sample(model: Path, tmp_path: Path, server: FakeVLLM) -> None:
    config, folder = settings(model, tmp_path, server), tmp_path / "out"
    die_after(server, 7)
    with pytest.raises(EvaluationError, match=r"11 of 18 samples have no answer .*all finished samples are kept"):
        run_evaluation(config, folder)
    kept = read_samples(folder)
    assert len(kept) == 7 and not (folder / "scores.json").exists()
    server.script = add
    before = len(server.bodies)
    scores = run_evaluation(config, folder)
    assert len(server.bodies) - before == 11  # what was there is not asked again
    assert {k: read_samples(folder)[k]["text"] for k in kept} == {k: row["text"] for k, row in kept.items()}
    whole = tmp_path / "unbroken"
    assert run_evaluation(config, whole)["benchmarks"] == scores["benchmarks"]
    assert read_samples(whole) == read_samples(folder)


def test_a_server_that_says_nothing_names_the_setting(model: Path, tmp_path: Path, server: FakeVLLM) -> None:
    config = settings(model, tmp_path, server)
    quick = config.server.model_copy(update={"request_timeout_seconds": 0.5, "max_retries": 0})
    server.delay = 30.0
    with pytest.raises(EvaluationError, match=r"answered no request for 0.5 s \(server.request_timeout_seconds\)"):
        run_evaluation(config.model_copy(update={"server": quick}), tmp_path / "silent")
    late = quick.model_copy(update={"timeout_seconds": 0.5, "request_timeout_seconds": 60.0})
    with pytest.raises(EvaluationError, match=r"18 of 18 .* after 0.5 s \(server.timeout_seconds\)"):
        run_evaluation(config.model_copy(update={"server": late}), tmp_path / "late")


@pytest.mark.parametrize("nonsense", [b"{not json", {"choices": "none"}, "text"])
def test_an_endpoint_that_answers_something_else(
    model: Path, tmp_path: Path, server: FakeVLLM, nonsense: Any
) -> None:
    config, folder = settings(model, tmp_path, server), tmp_path / "out"
    die_after(server, 5)
    with pytest.raises(EvaluationError):
        run_evaluation(config, folder)
    assert len(read_samples(folder)) == 5
    server.script = lambda body, count: (200, nonsense)
    with pytest.raises(EvaluationError, match=f"{server.url} answered a generate request with something else.*kept"):
        run_evaluation(config, folder)
    assert len(read_samples(folder)) == 5 and not (folder / "scores.json").exists()


def test_a_connection_that_drops_costs_no_finished_sample(model: Path, tmp_path: Path, server: FakeVLLM) -> None:
    config, folder = settings(model, tmp_path, server), tmp_path / "out"
    die_after(server, 5)
    with pytest.raises(EvaluationError):
        run_evaluation(config, folder)
    server.fail = {"/weight_info": "gone"}
    server.script = lambda body, count: (500, "gone")
    with pytest.raises(EvaluationError, match=r"13 of 13 samples have no answer.*kept"):
        run_evaluation(config, folder)
    assert len(read_samples(folder)) == 5


def test_a_server_of_our_own_that_cannot_start_is_said(
    model: Path, tmp_path: Path, server: FakeVLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ServerError("the vLLM server ended: out of memory")

    monkeypatch.setattr("pyrl.evaluation.generate.start_servers", fails)
    config = settings(model, tmp_path, server)
    own = config.model_copy(update={"server": config.server.model_copy(update={"urls": ()})})
    with pytest.raises(EvaluationError, match="out of memory; all finished samples are kept"):
        run_evaluation(own, tmp_path / "out")


def test_graders_are_tried_before_anything_is_drawn(model: Path, tmp_path: Path, server: FakeVLLM) -> None:
    for grader, message in (("maths", "'maths' is unknown"), ("reasoning_gym:none", "none")):
        with pytest.raises(ConfigError, match=message):
            run_evaluation(settings(model, tmp_path, server, benchmark={"grader": grader}), tmp_path / "out")
    assert server.bodies == [] and not (tmp_path / "out").exists()


def test_responses_end_at_every_stop_token_of_the_model(tmp_path: Path, server: FakeVLLM) -> None:
    model = write_model(tmp_path / "model", seed=0)
    (model / "generation_config.json").write_text('{"eos_token_id": [0, 7]}')
    run_evaluation(settings(model, tmp_path, server), tmp_path / "out")
    assert all(body["sampling_params"]["stop_token_ids"] == [0, 7] for body in server.bodies)


def test_a_model_with_too_few_positions_is_refused(model: Path, tmp_path: Path, server: FakeVLLM) -> None:
    with pytest.raises(ConfigError, match=r"has 64 positions.* needs 103: lower benchmarks\.NAME\.max_tokens to 61"):
        run_evaluation(settings(model, tmp_path, server, benchmark={"max_tokens": 100}), tmp_path / "out")


def test_samples_that_were_never_drawn_are_counted(model: Path, tmp_path: Path, server: FakeVLLM) -> None:
    config, folder = settings(model, tmp_path, server), tmp_path / "out"
    die_after(server, 7)
    with pytest.raises(EvaluationError):
        run_evaluation(config, folder)
    _, scores = regrade_folder(folder, [])
    assert scores["benchmarks"]["sums"]["missing"] == 11 and scores["benchmarks"]["sums"]["rows"] == 7
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(score_table(scores | {"model": "[/x]"}))
    assert "11 samples missing" in console.export_text()


def test_a_disk_that_fills_keeps_what_it_holds(
    model: Path, tmp_path: Path, server: FakeVLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = settings(model, tmp_path, server), tmp_path / "out"
    real, written = os.write, [0]

    def full(fd: int, data: bytes) -> int:
        if b'"prompt_hash"' in data:
            written[0] += 1
            if written[0] == 6:  # half of the row still fits
                real(fd, data[: len(data) // 2])
            if written[0] >= 6:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(EvaluationError, match=r"No space left on device.*all finished samples are kept: make room"):
            run_evaluation(config, folder)
    assert len(read_samples(folder)) == 5
    assert run_evaluation(config, folder)["benchmarks"]["sums"]["rows"] == QUESTIONS * SAMPLES


def test_a_disk_that_is_full_when_scores_are_written_keeps_the_samples(
    model: Path, tmp_path: Path, server: FakeVLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = settings(model, tmp_path, server), tmp_path / "out"
    real = Path.write_text

    def full(path: Path, *args: Any, **kwargs: Any) -> int:
        if path.name == "samples.jsonl.tmp":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(EvaluationError, match=r"samples.jsonl could not be written \(No space left"):
            run_evaluation(config, folder)
    assert len(read_samples(folder)) == QUESTIONS * SAMPLES and not list(folder.glob("*.tmp"))
    asked = len(server.bodies)
    assert run_evaluation(config, folder)["benchmarks"]["sums"]["unjudged"] == 0.0
    assert len(server.bodies) == asked


def test_a_model_that_answers_nothing_is_wrong_and_said(
    model: Path, tmp_path: Path, server: FakeVLLM, caplog: pytest.LogCaptureFixture
) -> None:
    server.script = lambda body, count: (200, answer(body, tokens=[END]))
    scores = run_evaluation(settings(model, tmp_path, server), tmp_path / "out")["benchmarks"]["sums"]
    assert (scores["empty"], scores["avg_at_k"]["mean"], scores["unjudged"]) == (1.0, 0.0, 0.0)
    assert "sums: every response is empty" in caplog.text


def test_a_model_that_does_not_answer_as_asked_is_said(
    model: Path, tmp_path: Path, server: FakeVLLM, caplog: pytest.LogCaptureFixture
) -> None:
    config = settings(model, tmp_path, server, benchmark={"grader": "math"})
    assert run_evaluation(config, tmp_path / "out")["benchmarks"]["sums"]["without_answer"] == 1.0
    assert "sums: 100.0% of the responses hold no answer where the grader looks for one" in caplog.text


def test_a_folder_of_another_evaluation_is_refused(model: Path, tmp_path: Path, server: FakeVLLM) -> None:
    folder = tmp_path / "out"
    run_evaluation(settings(model, tmp_path, server), folder)
    before = (folder / "samples.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="other benchmarks"):
        run_evaluation(settings(model, tmp_path, server, benchmark={"temperature": 1.0}), folder)
    with pytest.raises(ConfigError, match="other weights"):
        run_evaluation(settings(write_model(tmp_path / "other", seed=1), tmp_path, server), folder)
    changed = settings(model, tmp_path, server)
    data = tmp_path / "sums.jsonl"
    data.write_text(data.read_text().replace('\\"goal\\": 23', '\\"goal\\": 22', 1))
    with pytest.raises(ConfigError, match="other questions"):  # the verdicts there are of the old ground truth
        run_evaluation(changed, folder)
    write_questions(tmp_path, QUESTIONS - 1)
    with pytest.raises(ConfigError, match="other questions"):
        run_evaluation(changed, folder)
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="something else than an evaluation"):
        run_evaluation(settings(model, tmp_path, server), tmp_path / "busy")
    assert (folder / "samples.jsonl").read_bytes() == before


def test_given_servers_must_hold_the_longest_response(model: Path, tmp_path: Path, server: FakeVLLM) -> None:
    server.max_model_len = 10
    with pytest.raises(ConfigError, match="max_model_len 10, the longest prompt with its max_tokens needs 11"):
        run_evaluation(settings(model, tmp_path, server), tmp_path / "out")
    found = settings(model, tmp_path, server)
    gone = found.model_copy(update={"server": found.server.model_copy(update={"urls": ("http://127.0.0.1:9",)})})
    with pytest.raises(ConfigError, match=r"no vLLM server answers at http://127\.0\.0\.1:9"):
        run_evaluation(gone, tmp_path / "gone")


def test_regrading_needs_no_model_and_takes_graders_alone(model: Path, tmp_path: Path, server: FakeVLLM) -> None:
    folder = tmp_path / "out"
    scores = run_evaluation(settings(model, tmp_path, server), folder)
    path = folder / "samples.jsonl"
    path.write_text(path.read_text().replace('"verdict": "right"', '"verdict": "wrong"'))
    _, again = regrade_folder(folder, [])
    assert again["benchmarks"] == scores["benchmarks"]
    _, other = regrade_folder(folder, ["benchmarks.sums.grader=math"])
    assert other["benchmarks"]["sums"]["avg_at_k"]["mean"] == 0.0
    assert {row["grader"] for row in read_samples(folder).values()} == {"math"}
    assert regrade_folder(folder, [])[1] == other  # the folder says by what it is graded
    for override in ("benchmarks.sums.temperature=1", "model=other", "benchmarks.sums.column=AMC"):
        with pytest.raises(ConfigError, match=r"--regrade takes benchmarks\.NAME\.grader"):
            regrade_folder(folder, [override])
    (folder / "samples.jsonl").unlink()
    with pytest.raises(ConfigError, match="holds no sample yet"):
        regrade_folder(folder, [])
    with pytest.raises(ConfigError, match=r"holds no evaluation\.yaml"):
        regrade_folder(tmp_path, [])


def test_the_page_shows_each_verdict_and_cannot_be_broken_by_a_response(
    model: Path, tmp_path: Path, server: FakeVLLM
) -> None:
    folder = tmp_path / "out"
    run_evaluation(settings(model, tmp_path, server), folder)
    path = folder / "samples.jsonl"
    path.write_text(path.read_text().replace('"text": "+22 23"', '"text": "</pre><script>alert(1)</script>"'))
    page = write_evaluation_page(folder, 4).read_text()
    assert "<script>alert" not in page and page.count("<details data-") == 8
    assert page.count('data-verdict="right"') == page.count('data-verdict="wrong"') == 4
    assert "http://" not in page and "https://" not in page


def test_the_page_takes_samples_of_all_questions_in_turn() -> None:
    samples = [{"benchmark": "s", "verdict": "wrong", "question": q, "sample": n} for q in range(5) for n in range(4)]
    assert [(s["question"], s["sample"]) for s in pick(samples, 7)] == [*((q, 0) for q in range(5)), (0, 1), (1, 1)]
    cut = shorten("a" * 30_000)
    assert cut.count("a") < 20_100 and "10,000 characters are in samples.jsonl" in cut


def test_the_fingerprint_is_of_the_weights(tmp_path: Path, model: Path) -> None:
    same, other = write_model(tmp_path / "same", seed=0), write_model(tmp_path / "other", seed=1)
    assert weights_fingerprint(same) == weights_fingerprint(model) != weights_fingerprint(other)
    with pytest.raises(ConfigError, match=r"holds no \.safetensors"):
        weights_fingerprint(tmp_path)
