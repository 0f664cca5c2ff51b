import json
import runpy
import sys
import time
from pathlib import Path

import pytest

from pyrl.reward import RewardPool
from pyrl.reward.reasoning_gym import decode_entry, encode_entry, find_answer, load_grader, make_rows, write_rows
from pyrl.reward.tasks import UnknownTaskError

SCRIPT = Path(__file__).parents[2] / "scripts" / "reasoning_gym_data.py"

# chain_sum has one right text, countdown many expressions, rearc an entry that plain JSON would change (tuples)
TASKS = ["chain_sum", "countdown", "rearc"]


@pytest.mark.parametrize("name", TASKS)
def test_the_tasks_own_answer_is_right_and_another_is_not(name):
    rows = make_rows(name, 4, seed=3)
    right = [json.loads(truth)["answer"] for _, truth in rows]
    items = [(f"So <answer>{answer}</answer>", truth) for answer, (_, truth) in zip(right, rows, strict=True)]
    items += [("<answer>-1</answer>", rows[0][1]), ("", rows[0][1]), ("<answer></answer>", rows[0][1])]
    with RewardPool(f"reasoning_gym:{name}", 1, 20.0) as pool:
        verdicts = pool.grade([*items, ("1", "not json"), ("1", '{"question": "q"}')])
    assert [v.outcome for v in verdicts] == ["right"] * 4 + ["wrong"] * 3 + ["unjudged"] * 2, verdicts


def test_partial_credit_is_wrong():
    [(_, truth)] = make_rows("chain_sum", 1, seed=5)
    answer = json.loads(truth)["answer"]
    outcome, reason, _ = load_grader("chain_sum")(f"<answer>it is {answer}</answer>", truth)
    assert outcome == "wrong" and reason.startswith("different: score 0.")


def test_rows_depend_on_the_seed_alone():
    assert make_rows("chain_sum", 5, seed=1) == make_rows("chain_sum", 5, seed=1)
    assert make_rows("chain_sum", 5, seed=1) != make_rows("chain_sum", 5, seed=2)
    assert make_rows("chain_sum", 5, seed=1)[:3] == make_rows("chain_sum", 3, seed=1)


def test_options_reach_the_task():
    for prompt, truth in make_rows("chain_sum", 5, seed=1, instruction="", min_terms=2, max_terms=2):
        assert prompt == json.loads(truth)["question"]
        assert json.loads(truth)["metadata"]["num_terms"] == 2


@pytest.mark.parametrize("options", [{"size": 0}, {"no_such": 1}, {"min_terms": 5, "max_terms": 2}])
def test_bad_arguments_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make_rows("chain_sum", **{"size": 2, "seed": 0, **options})


@pytest.mark.parametrize("name", ["chain_sun", "composite", ""])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(UnknownTaskError, match=r"chain_sum.*word_ladder"):
        make_rows(name, 1, 0)


def test_entries_survive_json_exactly():
    entry = {
        "question": "q",
        "answer": None,
        "metadata": {"grid": ((0, 1), [2, (3,)]), "edges": {(0, 1): "a", 2: ()}, "plain": {"a": [1.5, None, True]}},
    }
    assert decode_entry(encode_entry(entry)) == entry
    assert decode_entry(json.dumps({"question": "q", "answer": "a", "metadata": {}}))["answer"] == "a"


@pytest.mark.parametrize("value", [{1, 2}, object(), 1j])
def test_an_entry_that_json_cannot_hold_is_refused(value):
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        encode_entry({"question": "q", "answer": "a", "metadata": {"x": value}})


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<answer> 5 </answer>", "5"),
        ("<answer>4</answer> no, <answer>5</answer>", "5"),
        ("<answer>a\nb</answer>", "a\nb"),
        ("<answer>5", "<answer>5"),
        ("</answer> \\boxed{5}", "5"),
        ("Answer: 5", "5"),
        (" 5 \n", "5"),
        ("", ""),
    ],
)
def test_find_answer(response, answer):
    assert find_answer(response) == answer


def test_find_answer_is_linear():
    start = time.monotonic()
    find_answer("<answer>" * 200_000)
    find_answer("</answer>" * 200_000)
    assert time.monotonic() - start < 5


def run_script(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_script_writes_rows(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    arguments = ["--size", "4", "--seed", "2", "--instruction", "", "min_terms=2", "max_terms=2"]
    run_script(monkeypatch, "chain_sum", str(path), *arguments)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    expected = make_rows("chain_sum", 4, 2, instruction="", min_terms=2, max_terms=2)
    assert [(r["prompt"][0]["content"], r["reward_model"]["ground_truth"]) for r in rows] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chain_sums", "a.jsonl"], "chain_sum"),
        (["chain_sum", "a.json"], "must end in .jsonl"),
        (["chain_sum", "a.jsonl", "min_terms"], "'min_terms' is not of the form key=value"),
        (["chain_sum", "a.jsonl", "min_terms=x"], "refuses the options"),
        (["chain_sum", "a.jsonl", "--size", "0"], "size 0"),
    ],
)
def test_the_script_refuses_bad_input(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_script(monkeypatch, *arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_write_rows_gives_the_schema_of_the_data_loader(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, "chain_sum", 3, seed=0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["prompt"][0]["content"], r["reward_model"]["ground_truth"]) for r in rows] == make_rows(
        "chain_sum", 3, 0
    )
    assert {r["data_source"] for r in rows} == {"reasoning_gym:chain_sum"}
    assert list(tmp_path.iterdir()) == [path]
