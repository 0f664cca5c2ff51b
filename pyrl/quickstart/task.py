"""The quickstart's task, made from nothing: walks on a ring with hidden gates (`pyrl.reward.ring_walk` has the rules).

A prompt gives start, goal and walls, `3 17 2 9 20 :`; an answer names four moves and where each leads to,
`+5 8 +7 15 +1 16 +1 17`. Some 19 * 18 * 17 answers to a question are right: three of nine tokens are free, and a policy
can be right and keep entropy. The start places are cut into as many parts as there are gates; each part has one first
move, drawn by the seed and told nowhere, after which walls and visited places do not count. A policy finds it only
while it still tries.

Reinforcement-learning prompts, held-out prompts and demonstrations share no question. In half of the demonstrations the
places are allowed ones, in half they are any; each stated place is one too far with probability `slip`, and the walk
goes on from there. So the supervised model knows more than it samples, as a pretrained model does.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

SOURCE = "ring_walk"
CAREFUL_SHARE = 0.5
"""Of the demonstrations: those that enter allowed places alone."""


@dataclass(frozen=True, slots=True)
class RingWalk:
    """What questions and demonstrations look like."""

    places: int = 24
    moves: int = 4
    walls: int = 3
    gates: int = 4
    """Hidden gates, one for each of as many equal parts of the start places. 0: none."""
    slip: float = 0.25
    """Probability that a demonstration states a place one too far."""

    def __post_init__(self) -> None:
        """Raises ValueError where a question could have no right answer, or parts would not be equal."""
        if self.places < self.moves + self.walls + 1 or self.moves < 1 or self.walls < 0:
            raise ValueError(
                f"places {self.places}: {self.moves} moves past {self.walls} walls need {self.moves + self.walls + 1}"
            )
        if self.gates and (self.gates < 0 or self.places % self.gates or self.gates >= self.places):
            raise ValueError(f"gates {self.gates}: want 0 or a divisor of places {self.places} below it")
        if not 0 <= self.slip <= 1:
            raise ValueError(f"slip {self.slip}: want a probability")


STANDARD = RingWalk()
"""The quickstart's."""


@dataclass(frozen=True, slots=True)
class Question:
    task: RingWalk
    start: int
    goal: int
    walls: tuple[int, ...]
    gate: int | None

    @property
    def prompt(self) -> str:
        return " ".join(map(str, (self.start, self.goal, *self.walls))) + " :"

    @property
    def part(self) -> int:
        """Of the start places, from 0; it has one gate."""
        return self.start * self.task.gates // self.task.places

    def to_row(self, index: int) -> dict[str, object]:
        """The row in the schema of `data.path`. With gates each part is a data source of its own."""
        truth = {"places": self.task.places, "moves": self.task.moves, "start": self.start, "goal": self.goal}
        return {
            "data_source": f"{SOURCE} gate {self.part + 1}" if self.task.gates else SOURCE,
            "prompt": [{"role": "user", "content": self.prompt}],
            "ability": "arithmetic",
            "reward_model": {
                "style": "rule",
                "ground_truth": json.dumps(truth | {"walls": list(self.walls), "gate": self.gate}),
            },
            "extra_info": {"index": index},
        }

    def demonstration(self, rng: random.Random) -> str:
        """An answer, mostly a wrong one."""
        careful = rng.random() < CAREFUL_SHARE
        closed, place, words = {self.start, self.goal, *self.walls}, self.start, []
        for step in range(self.task.moves):
            aim = self.goal if step == self.task.moves - 1 else self._aim(rng, closed if careful else set())
            move = (aim - place) % self.task.places
            place = (aim + (rng.random() < self.task.slip)) % self.task.places
            closed.add(place)
            words += [f"+{move}", str(place)]
        return " ".join(words)

    def _aim(self, rng: random.Random, closed: set[int]) -> int:
        open_places = [place for place in range(self.task.places) if place not in closed]
        return rng.choice(open_places or range(self.task.places))


def draw_gates(task: RingWalk, rng: random.Random) -> list[int]:
    """The first move that is the gate of each part, all different."""
    return rng.sample(range(1, task.places), task.gates)


def draw_questions(task: RingWalk, count: int, gates: list[int], rng: random.Random) -> list[Question]:
    """`count` different ones. Raises ValueError where there are not so many."""
    questions: dict[str, Question] = {}
    for _ in range(20 * count):
        start, goal, *walls = rng.sample(range(task.places), 2 + task.walls)
        gate = gates[start * task.gates // task.places] if gates else None
        question = Question(task, start, goal, tuple(sorted(walls)), gate)
        questions.setdefault(question.prompt, question)
        if len(questions) == count:
            return list(questions.values())
    raise ValueError(f"{count} prompts: the task has not so many different questions; found {len(questions)}")


@dataclass(frozen=True, slots=True)
class TaskFiles:
    train: Path
    validation: Path
    demonstrations: Path

    @classmethod
    def of(cls, folder: Path) -> TaskFiles:
        return cls(folder / "train.jsonl", folder / "validation.jsonl", folder / "demonstrations.jsonl")


def write_task(
    folder: Path,
    *,
    seed: int,
    train: int,
    validation: int,
    demonstrated: int,
    demonstrations: int,
    task: RingWalk = STANDARD,
) -> TaskFiles:
    """Write train.jsonl, validation.jsonl (prompts) and demonstrations.jsonl (`prompt`, `response`, of `demonstrated`
    further questions) into `folder`. Raises ValueError when the task has not so many questions."""
    rng = random.Random(seed)
    gates = draw_gates(task, rng)
    questions = draw_questions(task, train + validation + demonstrated, gates, rng)
    folder.mkdir(parents=True, exist_ok=True)
    files = TaskFiles.of(folder)
    _write_jsonl(files.train, [q.to_row(i) for i, q in enumerate(questions[:train])])
    held_out = questions[train : train + validation]
    _write_jsonl(files.validation, [q.to_row(train + i) for i, q in enumerate(held_out)])
    rest = questions[train + validation :]
    shown = (rng.choice(rest) for _ in range(demonstrations))
    _write_jsonl(files.demonstrations, [{"prompt": q.prompt, "response": q.demonstration(rng)} for q in shown])
    return files


def _write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
