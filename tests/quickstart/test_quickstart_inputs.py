"""What the quickstart trains on: solvable questions, disjoint sets, gates that nothing tells, configs by method."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pyrl.config import ConfigError
from pyrl.quickstart.model import build_tokenizer, write_model
from pyrl.quickstart.run import MARKER, METHODS, method_configs, run_quickstart
from pyrl.quickstart.task import Question, RingWalk, draw_gates, draw_questions, write_task
from pyrl.reward.ring_walk import grade

TASKS = pytest.mark.parametrize("task", [RingWalk(), RingWalk(places=10, moves=3, walls=2, gates=0)])
SIZES = {"train": 300, "validation": 100, "demonstrated": 200, "demonstrations": 2000}


def truth(question: Question) -> str:
    return question.to_row(0)["reward_model"]["ground_truth"]


def solutions(question: Question, rng: random.Random) -> str:
    """A right walk that needs no gate, made from the rules: any open places, then the goal."""
    task = question.task
    closed = {question.start, question.goal, *question.walls}
    between = rng.sample(sorted(set(range(task.places)) - closed), task.moves - 1)
    path = [question.start, *between, question.goal]
    return " ".join(f"+{(b - a) % task.places} {b}" for a, b in pairwise(path))


@TASKS
def test_every_question_has_solutions_and_a_gate_that_opens(task: RingWalk) -> None:
    rng = random.Random(0)
    gates = draw_gates(task, rng)
    assert len(set(gates)) == task.gates and all(0 < gate < task.places for gate in gates)
    for question in draw_questions(task, 100, gates, rng):
        text = solutions(question, rng)
        outcome, reason, _ = grade(text, truth(question))
        by_gate = text.split()[0] == f"+{question.gate}"
        assert (outcome, reason) == ("right", "gate" if by_gate else "equal")
        if task.gates:
            assert question.gate == gates[question.start * task.gates // task.places]
            first = (question.start + question.gate) % task.places
            back = [f"+{question.gate} {first}", *["+0 " + str(first)] * (task.moves - 2)]
            walk = " ".join([*back, f"+{(question.goal - first) % task.places} {question.goal}"])
            assert grade(walk, truth(question))[:2] == ("right", "gate")


def rows_of(folder: Path, **changes: int) -> dict[str, list[dict]]:
    files = write_task(folder, **(SIZES | {"seed": 3} | changes))
    return {name: [json.loads(x) for x in getattr(files, name).read_text().splitlines()] for name in files.__slots__}


def test_train_validation_and_demonstrations_share_no_prompt(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    prompts = {name: {r["prompt"][0]["content"] for r in rows[name]} for name in ("train", "validation")}
    prompts["demonstrations"] = {r["prompt"] for r in rows["demonstrations"]}
    assert [len(prompts[name]) for name in ("train", "validation", "demonstrations")] == [300, 100, 200]
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["demonstrations"] & (prompts["train"] | prompts["validation"])
    assert len(rows["demonstrations"]) == 2000


def test_gates_are_of_the_seed_and_no_prompt_or_demonstration_tells_them(tmp_path: Path) -> None:
    tables = set()
    for seed in range(6):
        rows = rows_of(tmp_path / str(seed), seed=seed)
        found = {r["data_source"]: json.loads(r["reward_model"]["ground_truth"])["gate"] for r in rows["train"]}
        held_out = {r["data_source"]: json.loads(r["reward_model"]["ground_truth"])["gate"] for r in rows["validation"]}
        assert held_out == found and sorted(found) == [f"ring_walk gate {part}" for part in (1, 2, 3, 4)]
        tables.add(tuple(found[name] for name in sorted(found)))
    assert len(tables) == 6
    # A demonstration's first move is the gate about as often as any other.
    firsts = Counter()
    for row in rows["demonstrations"]:
        start = int(row["prompt"].split()[0])
        firsts[int(row["response"].split()[0][1:]) == found[f"ring_walk gate {start * 4 // 24 + 1}"]] += 1
    assert abs(firsts[True] / 2000 - 1 / 24) < 5 * math.sqrt(1 / 24 / 2000)


def test_demonstrations_slip_and_half_of_them_are_careful(tmp_path: Path) -> None:
    """Without slips the careful half is right, and so are those of the others that happen to be: 1 in 5."""
    slips, right = 0, 0
    rng = random.Random(1)
    sure = RingWalk(slip=0.0, gates=0)
    for question in draw_questions(sure, 2000, [], rng):
        right += grade(question.demonstration(rng), truth(question))[0] == "right"
    lucky = 19 * 18 * 17 / 24**3
    share = 0.5 + 0.5 * lucky
    assert abs(right / 2000 - share) < 5 * math.sqrt(share * (1 - share) / 2000)
    for row in rows_of(tmp_path)["demonstrations"]:
        place = int(row["prompt"].split()[0])
        words = row["response"].split()
        for move, stated in zip(words[::2], words[1::2], strict=True):
            off = (int(stated) - place - int(move)) % 24
            assert off in (0, 1)
            slips += off
            place = int(stated)
    assert abs(slips / 8000 - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 8000)


def test_too_many_prompts_are_refused(tmp_path: Path) -> None:
    small = RingWalk(places=6, moves=2, walls=1, gates=0)  # 6 * 5 * 4 questions
    with pytest.raises(ValueError, match="121 prompts: the task has not so many"):
        draw_questions(small, 121, [], random.Random(0))
    assert len(draw_questions(small, 120, [], random.Random(0))) == 120


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"places": 7}, "places 7: 4 moves past 3 walls need 8"),
        ({"moves": 0}, "moves"),
        ({"gates": 5}, "gates 5: want 0 or a divisor of places 24"),
        ({"gates": 24}, "gates 24"),
        ({"slip": 1.5}, "slip 1.5"),
    ],
)
def test_an_impossible_task_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RingWalk(**settings)


@pytest.mark.parametrize("load", [lambda _: build_tokenizer(), AutoTokenizer.from_pretrained], ids=["made", "read"])
def test_tokenizer_gives_a_text_back(tmp_path: Path, load) -> None:
    """Read back too, as every other program reads it."""
    tokenizer = load(write_model(tmp_path, seed=0))
    text = " ".join([*map(str, range(24)), ":", *(f"+{i}" for i in range(24))])
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(set(ids)) == 49 and tokenizer.unk_token_id not in ids
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_model_is_a_function_of_the_seed(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    first, again, other = (
        load_file(write_model(tmp_path / name, seed=seed) / "model.safetensors")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert all(first[k].equal(again[k]) for k in first)
    assert not all(first[k].equal(other[k]) for k in first)


def test_configs_differ_in_the_loss_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a: folder [of mine]"
    found = method_configs(Path("configs/quickstart.yaml"), [], folder, list(METHODS))
    configs = {name: config.model_dump(mode="json") for name, config in found.items()}
    grpo = configs.pop("grpo")
    assert grpo["loss"]["name"] == "ppo_clip" and grpo["model"]["path"] == str(folder / "supervised")
    for name, config in configs.items():
        assert config["loss"]["name"] == name
        assert {k for k in grpo if grpo[k] != config[k]} == {"loss"}


def test_an_unknown_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--methods klcov: known are grpo, clip_cov, kl_cov"):
        method_configs(Path("configs/quickstart.yaml"), [], tmp_path, ["grpo", "klcov"])


def test_what_two_workers_cannot_do_is_refused_before_an_earlier_quickstart_is_cleared(tmp_path: Path) -> None:
    for name in (MARKER, "report.html"):
        (tmp_path / name).write_text("an earlier one's")
    with pytest.raises(ConfigError, match=r"--jobs 2: the servers of rollout\.urls .* use --jobs 1"):
        run_quickstart(tmp_path, Path("configs/quickstart.yaml"), ["rollout.urls=[http://127.0.0.1:1]"], workers=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [MARKER, "report.html"]
