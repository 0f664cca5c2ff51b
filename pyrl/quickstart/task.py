"""The quickstart's task, made from nothing: reach a target from two of seven digits with + or -.

A question is a set of seven of the digits 1 to 9 and a target that some expression over two of them reaches, for
example `1235789>4:` -> `9-5`. Most have several answers: a policy need not lose its entropy to be right.
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
GIVEN, USED = 7, 2
RANDOM_SHARE = 0.5
"""Of the demonstrations: random expressions instead of solutions."""
SOURCE = "countdown"


@dataclass(frozen=True, slots=True)
class Question:
    numbers: tuple[int, ...]
    target: int

    @property
    def prompt(self) -> str:
        return f"{''.join(map(str, self.numbers))}>{self.target}:"

    def to_row(self, index: int) -> dict[str, object]:
        """The row in the schema of `data.path`."""
        truth = json.dumps({"numbers": list(self.numbers), "target": self.target, "count": USED})
        return {
            "data_source": SOURCE,
            "prompt": [{"role": "user", "content": self.prompt}],
            "ability": "arithmetic",
            "reward_model": {"style": "rule", "ground_truth": truth},
            "extra_info": {"index": index},
        }


def expressions(numbers: tuple[int, ...]) -> dict[str, int]:
    """Every expression `a op b` over two of the digits, with its value."""
    return {
        f"{a}{operator}{b}": a + b if operator == "+" else a - b
        for a, b in itertools.permutations(numbers, USED)
        for operator in OPERATORS
    }


def all_questions() -> list[Question]:
    """Every reachable (digits, target), in a fixed order."""
    return [
        Question(numbers, target)
        for numbers in itertools.combinations(range(1, 10), GIVEN)
        for target in sorted(set(expressions(numbers).values()))
    ]


@dataclass(frozen=True, slots=True)
class TaskFiles:
    train: Path
    validation: Path
    demonstrations: Path


def write_task(folder: Path, *, seed: int, train: int, validation: int, demonstrations: int) -> TaskFiles:
    """Write train.jsonl, validation.jsonl (prompts) and demonstrations.jsonl (`prompt`, `response`) into `folder`.

    Raises ValueError when `train` + `validation` leave no question for the demonstrations.
    """
    rng = random.Random(seed)
    questions = all_questions()
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
    values = expressions(question.numbers)
    if rng.random() < RANDOM_SHARE:
        return {"prompt": question.prompt, "response": rng.choice(sorted(values))}
    solutions = sorted(text for text, value in values.items() if value == question.target)
    return {"prompt": question.prompt, "response": rng.choice(solutions)}


def _write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
