"""Tasks of the reasoning-gym library, as `reasoning_gym:NAME`.

Ground truth: the task's entry (`question`, `answer`, `metadata`) as JSON. Tuples and mappings with keys that are not
strings are tagged, because scorers compare them: `{"__tuple__": [...]}`, `{"__items__": [[key, value], ...]}`. An entry
written by hand needs no tags.

Some of the library's scorers evaluate the answer as a Python or sympy expression: they run in a grader process only.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

from pyrl.reward.answers import extract_answer
from pyrl.reward.tasks import (
    DIFFERENT,
    EQUAL,
    NO_ANSWER,
    OVER_LIMIT,
    UNREADABLE_GROUND_TRUTH,
    Grader,
    RawVerdict,
    UnknownTaskError,
)

RIGHT_SCORE = 1.0
"""`score_answer` gives partial credit in [0, 1]; only full credit is right."""
MAX_CHARACTERS = 20_000
"""Longest answer that is scored."""
ANSWER_INSTRUCTION = "\n\nGive the final answer between <answer> and </answer>."


def find_answer(response: str) -> str:
    r"""Content of the last `<answer>...</answer>`, else of the last `\boxed{}` or `Answer:` line, else all the text."""
    end = response.rfind("</answer>")
    start = response.rfind("<answer>", 0, end) if end >= 0 else -1
    if start >= 0:
        return response[start + len("<answer>") : end].strip()
    return extract_answer(response) or response.strip()


def load_grader(variant: str) -> Grader:
    """The grader of task NAME. Raises UnknownTaskError naming the nearest names and all others."""
    score_answer = _scorer(variant)

    def grade(response: str, ground_truth: str) -> RawVerdict:
        try:
            entry = decode_entry(ground_truth)
        except ValueError as error:
            return "unjudged", f"{UNREADABLE_GROUND_TRUTH}: {error}", None
        answer = find_answer(response)
        if not answer:
            return "wrong", NO_ANSWER, None
        if len(answer) > MAX_CHARACTERS:
            return "wrong", f"{OVER_LIMIT}: {len(answer)} characters, at most {MAX_CHARACTERS}", answer
        score = float(score_answer(answer, entry))
        if score >= RIGHT_SCORE:
            return "right", EQUAL, answer
        return "wrong", f"{DIFFERENT}: score {score:.3g}", answer

    return grade


def make_rows(
    name: str, size: int, seed: int, *, instruction: str = ANSWER_INSTRUCTION, **options: Any
) -> list[tuple[str, str]]:
    """`size` rows (prompt text, ground truth) of the task; the same arguments give the same rows.

    Args:
        name: the task's name in reasoning-gym, without the `reasoning_gym:` before it.
        size: number of rows, at least 1.
        seed: of the library's generator.
        instruction: appended to each question; "" for a model that answers with nothing but the answer.
        options: fields of the task's own config, such as `min_terms=2`.

    Raises:
        UnknownTaskError: no such task. ValueError: an option the task refuses, or an entry that JSON cannot hold.
    """
    import reasoning_gym

    _scorer(name)
    if size < 1:
        raise ValueError(f"size {size}: want at least 1")
    try:
        entries = reasoning_gym.create_dataset(name, size=size, seed=seed, **options)
    except (TypeError, AssertionError, ValueError) as error:
        raise ValueError(f"reasoning_gym task {name!r} refuses the options {options}: {error}") from error
    return [(entry["question"] + instruction, encode_entry(entry)) for entry in entries]


def write_rows(path: Path, name: str, size: int, seed: int, **options: Any) -> None:
    """`make_rows` as JSONL in the schema that `data.path` takes. The file appears when it is complete."""
    rows = make_rows(name, size, seed, **options)
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="utf-8") as out:
        for index, (prompt, truth) in enumerate(rows):
            row = {
                "data_source": f"reasoning_gym:{name}",
                "prompt": [{"role": "user", "content": prompt}],
                "reward_model": {"style": "rule", "ground_truth": truth},
                "extra_info": {"index": f"{name}-{seed}-{index}"},
            }
            out.write(json.dumps(row) + "\n")
    os.replace(aside, path)


def encode_entry(entry: dict[str, Any]) -> str:
    """The entry as JSON that `decode_entry` turns back into an equal one. Raises ValueError if that is not possible."""
    kept = {key: entry.get(key) for key in ("question", "answer", "metadata")}
    try:
        text = json.dumps(_tag(kept))
    except TypeError as error:
        raise ValueError(f"an entry cannot be written as JSON: {error}") from error
    if decode_entry(text) != kept:
        raise ValueError(f"an entry does not survive JSON: {text[:200]}")
    return text


def decode_entry(ground_truth: str) -> dict[str, Any]:
    """Raises ValueError where the text is not JSON or lacks a field."""
    entry = _untag(json.loads(ground_truth))
    if not isinstance(entry, dict):
        raise ValueError(f"ground truth is {type(entry).__name__}, not an object with question, answer and metadata")
    missing = [key for key in ("question", "answer", "metadata") if key not in entry]
    if missing:
        raise ValueError(f"ground truth lacks {missing[0]!r}")
    return entry


def _tag(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"__tuple__": [_tag(item) for item in value]}
    if isinstance(value, list):
        return [_tag(item) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _tag(item) for key, item in value.items()}
        return {"__items__": [[_tag(key), _tag(item)] for key, item in value.items()]}
    return value


def _untag(value: Any) -> Any:
    if isinstance(value, list):
        return [_untag(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"__tuple__"}:
            return tuple(_untag(item) for item in value["__tuple__"])
        if value.keys() == {"__items__"}:
            return {_untag(key): _untag(item) for key, item in value["__items__"]}
        return {key: _untag(item) for key, item in value.items()}
    return value


def _scorer(name: str) -> Any:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS or name == "composite":  # composite has no task of its own
        known = sorted(set(DATASETS) - {"composite"})
        nearest = difflib.get_close_matches(name, known, n=3)
        hint = f" (nearest: {', '.join(nearest)})" if nearest else ""
        raise UnknownTaskError(f"reward.task 'reasoning_gym:{name}' is unknown{hint}; known names: {', '.join(known)}")
    return reasoning_gym.get_score_answer_fn(name)
