"""A task made from nothing: reach a target from some of the given digits with + and -.

The quickstart's question is a set of seven of the digits 1 to 9 and a target that some expression over two of them
reaches, for example `1235789>4:` -> `9-5`. Most have several answers: a policy need not lose its entropy to be right.
Reinforcement-learning prompts, held-out prompts and demonstrations share no question.
Half of the demonstrations are solutions and half are expressions over the digits drawn at random: the supervised model
knows more than it samples, as a pretrained model does, and has entropy to lose.
"""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path

OPERATORS = "+-"
RANDOM_SHARE = 0.5
"""Of the demonstrations: random expressions instead of solutions."""
SOURCE = "countdown"


@dataclass(frozen=True, slots=True)
class Task:
    """What questions look like."""

    given: int = 7
    """Different digits of a question, 1 to 9."""
    used: int = 2
    """Digits that an answer takes of them."""


@dataclass(frozen=True, slots=True)
class Question:
    numbers: tuple[int, ...]
    target: int
    used: int

    @property
    def prompt(self) -> str:
        return f"{''.join(map(str, self.numbers))}>{self.target}:"

    def to_row(self, index: int) -> dict[str, object]:
        """The row in the schema of `data.path`."""
        truth = json.dumps({"numbers": list(self.numbers), "target": self.target, "count": self.used})
        return {
            "data_source": SOURCE,
            "prompt": [{"role": "user", "content": self.prompt}],
            "ability": "arithmetic",
            "reward_model": {"style": "rule", "ground_truth": truth},
            "extra_info": {"index": index},
        }


def expressions(numbers: tuple[int, ...], used: int) -> dict[str, int]:
    """Every expression `a op b ...` over `used` of the digits, with its value."""
    found = {}
    for first, *others in itertools.permutations(numbers, used):
        for signs in itertools.product(OPERATORS, repeat=used - 1):
            terms = [(sign, digit) for sign, digit in zip(signs, others, strict=True)]
            text = f"{first}" + "".join(f"{sign}{digit}" for sign, digit in terms)
            found[text] = first + sum(digit if sign == "+" else -digit for sign, digit in terms)
    return found


def all_questions(task: Task) -> list[Question]:
    """Every reachable (digits, target), in a fixed order."""
    return [
        Question(numbers, target, task.used)
        for numbers in itertools.combinations(range(1, 10), task.given)
        for target in sorted(set(expressions(numbers, task.used).values()))
    ]


@dataclass(frozen=True, slots=True)
class TaskFiles:
    train: Path
    validation: Path
    demonstrations: Path


def write_task(
    folder: Path, *, seed: int, train: int, validation: int, demonstrations: int, task: Task = Task()
) -> TaskFiles:
    """Write train.jsonl, validation.jsonl (prompts) and demonstrations.jsonl (`prompt`, `response`) into `folder`.

    Raises ValueError when `train` + `validation` leave no question for the demonstrations.
    """
    rng = random.Random(seed)
    questions = all_questions(task)
    rng.shuffle(questions)
    if train + validation >= len(questions):
        raise ValueError(f"train {train} + validation {validation} prompts: the task has {len(questions)} questions")
    folder.mkdir(parents=True, exist_ok=True)
    files = TaskFiles(folder / "train.jsonl", folder / "validation.jsonl", folder / "demonstrations.jsonl")
    _write_jsonl(files.train, [q.to_row(i) for i, q in enumerate(questions[:train])])
    held_out = questions[train : train + validation]
    _write_jsonl(files.validation, [q.to_row(train + i) for i, q in enumerate(held_out)])
    rest = questions[train + validation :]
    _write_jsonl(files.demonstrations, [_demonstration(rng.choice(rest), rng) for _ in range(demonstrations)])
    return files


def _demonstration(question: Question, rng: random.Random) -> dict[str, str]:
    values = expressions(question.numbers, question.used)
    if rng.random() < RANDOM_SHARE:
        return {"prompt": question.prompt, "response": rng.choice(sorted(values))}
    solutions = sorted(text for text, value in values.items() if value == question.target)
    return {"prompt": question.prompt, "response": rng.choice(solutions)}


def _write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
