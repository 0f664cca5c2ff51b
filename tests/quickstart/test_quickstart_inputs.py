"""What the quickstart trains on: solvable questions, disjoint sets, configs that differ in the loss alone."""

import json
import math

import pytest

from pyrl.quickstart.model import CHARACTERS, build_tokenizer, write_model
from pyrl.quickstart.task import Task, all_questions, expressions, write_task
from pyrl.reward.countdown import grade


def value_of(text: str) -> int:
    """A second evaluator: signs paired with digits, left to right."""
    signs = ["+", *text[1::2]]
    assert set(signs) <= {"+", "-"}
    return sum(int(digit) if sign == "+" else -int(digit) for sign, digit in zip(signs, text[::2], strict=True))


def operands(text: str) -> list[str]:
    return [c for c in text if c.isdigit()]


TASKS = pytest.mark.parametrize("task", [Task(), Task(given=6, used=3)])


@TASKS
def test_every_question_has_a_solution(task: Task) -> None:
    for question in all_questions(task)[::37]:
        assert len(question.numbers) == task.given
        solutions = [t for t in expressions(question.numbers, task.used) if value_of(t) == question.target]
        assert solutions
        for text in solutions:
            assert len(operands(text)) == task.used == len(set(operands(text)) & set(map(str, question.numbers)))


@TASKS
def test_the_reward_agrees_with_the_task(task: Task) -> None:
    for question in all_questions(task)[::97]:
        truth = question.to_row(0)["reward_model"]["ground_truth"]
        found = expressions(question.numbers, task.used)
        assert len(found) == math.perm(task.given, task.used) * 2 ** (task.used - 1)
        for text in found:
            assert (grade(text, truth)[0] == "right") == (value_of(text) == question.target)


def test_train_validation_and_demonstrations_share_no_prompt(tmp_path) -> None:
    files = write_task(tmp_path, seed=3, train=300, validation=100, demonstrations=2000)
    rows = {name: [json.loads(x) for x in getattr(files, name).read_text().splitlines()] for name in files.__slots__}
    prompts = {name: {r["prompt"][0]["content"] for r in rows[name]} for name in ("train", "validation")}
    prompts["demonstrations"] = {r["prompt"] for r in rows["demonstrations"]}
    assert len(prompts["train"]) == 300 and len(prompts["validation"]) == 100
    assert len(prompts["demonstrations"]) > 250
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["demonstrations"] & (prompts["train"] | prompts["validation"])


def test_half_of_the_demonstrations_are_drawn_from_solutions(tmp_path) -> None:
    """A random expression is right by chance too, in 0.043 of the cases: 0.5 + 0.5 * 0.043 of 2000, 5 deviations."""
    files = write_task(tmp_path, seed=0, train=300, validation=100, demonstrations=2000)
    right = 0
    for row in (json.loads(x) for x in files.demonstrations.read_text().splitlines()):
        numbers, target = row["prompt"].rstrip(":").split(">")
        assert len(operands(row["response"])) == Task().used and set(operands(row["response"])) <= set(numbers)
        right += value_of(row["response"]) == int(target)
    assert 0.465 < right / 2000 < 0.578


def test_too_many_prompts_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="the task has 843 questions"):
        write_task(tmp_path, seed=0, train=800, validation=43, demonstrations=1)


def test_tokenizer_gives_a_text_back() -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer(CHARACTERS)["input_ids"]
    assert len(set(ids)) == len(CHARACTERS) and tokenizer.unk_token_id not in ids
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == CHARACTERS


def test_model_is_a_function_of_the_seed(tmp_path) -> None:
    from safetensors.torch import load_file

    first, again, other = (
        load_file(write_model(tmp_path / name, seed=seed) / "model.safetensors")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert all(first[k].equal(again[k]) for k in first)
    assert not all(first[k].equal(other[k]) for k in first)


def test_configs_differ_only_in_the_loss(tmp_path) -> None:
    from pyrl.quickstart.run import method_configs

    configs = {n: c.model_dump(mode="json") for n, c in method_configs("configs/quickstart.yaml", [], tmp_path).items()}
    grpo, kl_cov = configs["grpo"], configs["kl_cov"]
    assert grpo["loss"]["name"] == "ppo_clip" and kl_cov["loss"]["name"] == "kl_cov"
    assert {k for k in grpo if grpo[k] != kl_cov[k]} == {"loss"}
