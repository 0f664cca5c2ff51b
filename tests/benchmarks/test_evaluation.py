"""The benchmark of the evaluation measures what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import evaluation, late_server
from benchmarks.evaluation import Cost, Timing
from pyrl.quickstart import run as quickstart
from pyrl.quickstart.model import write_model
from tests.rollout.fake_vllm import FakeVLLM, answer


def test_the_late_server_keeps_so_many_waiting_until_all_have_come() -> None:
    answered: list[int] = []

    class Written:
        def __init__(self, number: int) -> None:
            self.number = number

        def write(self, data: bytes) -> None:
            assert data == late_server.ANSWER
            answered.append(self.number)

    queue = late_server.Queue(80, 200)
    for number in range(200):
        waiting = number - len(answered)
        assert waiting < 80 and (number < 80 or waiting >= 70)
        queue.add(Written(number))
    assert answered == list(range(200))


def test_the_questions_are_the_quickstarts() -> None:
    """The first of its held-out ones, which are drawn after those it trains on."""
    assert evaluation.TRAINING_QUESTIONS == quickstart.TRAIN_PROMPTS
    assert evaluation.QUESTIONS <= quickstart.VALIDATION_PROMPTS


def test_files_and_table_hold_costs_and_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "MOST_GROWTH", float("inf"))  # forty answers are too few to judge by
    model = write_model(tmp_path / "model", seed=0)
    with FakeVLLM(lambda body, _: (200, answer(body, tokens=[9, 12, 5, 0]))) as server:
        evaluation.main(
            [*("--open", "4", "32", "--answers", "40", "--model", str(model), "--questions", "3", "--samples", "2"),
             *("--set", f"server.urls={json.dumps([server.url])}", "--out", str(tmp_path / "results"))]
        )  # fmt: skip
        asked = [(tuple(body["token_ids"]), body["sampling_params"]["seed"]) for body in server.bodies]
    (json_file,), (markdown_file,) = ((tmp_path / "results").glob(f"*.{end}") for end in ("json", "md"))
    assert json_file.stem == markdown_file.stem and json_file.stem.startswith("evaluation_")
    results, markdown = json.loads(json_file.read_text()), markdown_file.read_text()
    assert f"- command: `{results['command']}`" in markdown
    assert len({prompt for prompt, _ in asked}) == 3 and len(set(asked)) == 6
    timing = results["evaluation"]
    assert (timing["samples"], timing["tokens"]) == (6, 24)
    assert 0 < timing["first_answer"] <= timing["last_answer"] < timing["scores"]
    assert timing["client_cpu"] > 0.5 and f"| start to scores | {timing['scores']:.1f} (" in markdown
    assert [cost["open"] for cost in results["costs"]] == [4, 32]
    for cost in results["costs"]:
        assert 0 < cost["cpu_milliseconds"] < 1000
        assert f"| {cost['open']} | {cost['cpu_milliseconds']:.2f} |" in markdown


def test_a_cost_that_grows_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "cost_of_answers", lambda number, _: Cost(number, 0.5 + number / 1000))
    evaluation.main(["--open", "100", "500", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="more than 4 times as much with 3000 open requests"):
        evaluation.main(["--open", "100", "3000", "--out", str(tmp_path)])


def test_a_missed_goal_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "cost_of_answers", lambda number, _: Cost(number, 0.5))
    arguments = ["--model", str(tmp_path), "--out", str(tmp_path / "results")]
    for seconds in (75.0, 80.4):
        timing = Timing(7680, 30_000, 1.0, 2.0, seconds, 1.0, 1.0, (0.0, 0.0))
        monkeypatch.setattr(evaluation, "time_evaluation", lambda *_, timing=timing: timing)
        if seconds <= 75:
            evaluation.main(arguments)
    with pytest.raises(SystemExit, match=r"the evaluation took 80\.4 s, the goal is 75 s"):
        evaluation.main(arguments)


@pytest.mark.late
def test_an_answer_costs_the_same_with_20000_open() -> None:
    most = min(20_000, evaluation.most_open())
    few, many = (evaluation.cost_of_answers(number, 2000).cpu_milliseconds for number in (500, most))
    assert many < evaluation.MOST_GROWTH * few


def test_a_missed_goal_is_said_by_how_much() -> None:
    context = {"device": "d", "date": "2026-01-01", "command": "c"}
    for seconds, said in ((75.0, "75.0 (within the goal of 75)"), (151.4, "151.4 (76 above the goal of 75)")):
        timing = Timing(7680, 30_000, 1.0, 2.0, seconds, 1.0, 1.0, (0.0, 0.0))
        assert f"| start to scores | {said} |" in evaluation.markdown([], timing, context)


def test_a_trial_does_not_take_the_place_of_results() -> None:
    costs = [Cost(number, 0.5) for number in evaluation.OPEN]
    whole, part = (Timing(samples, 1, 1.0, 2.0, 3.0, 1.0, 1.0, (0.0, 0.0)) for samples in (7680, 6))
    assert evaluation.folder(whole, costs).name == "results"
    for timing, found in ((None, costs), (part, costs), (whole, costs[:1])):
        assert evaluation.folder(timing, found).parts[-2:] == ("build", "bench")
