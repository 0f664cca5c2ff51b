"""The sentence that a quickstart's report opens with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from pyrl.quickstart.summary import gates_found, sentence

STEPS = 40


def write_run(folder: Path, *, entropy: float, reasons: Mapping[str, dict[str, int]]) -> Path:
    """The mean entropy of the last 20 steps is `entropy`; an earlier validation has everything wrong."""
    folder.mkdir()
    entropies = [2.0] * (STEPS - 20) + [entropy - 0.01, entropy + 0.01] * 10
    rows = [{"step": i, "entropy": h, "reward_mean": 0.5} for i, h in enumerate(entropies, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = []
    for step in (STEPS // 2, STEPS):
        for source, count in reasons.items():
            given = count if step == STEPS else {"wrong_sum": sum(count.values())}
            right = given.get("equal", 0) + given.get("gate", 0)
            questions.append({"step": step, "prompt_id": source, "source": source, "samples": sum(given.values()),
                              "right": right, "unjudged": 0, "reasons": given})  # fmt: skip
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return folder


@pytest.fixture
def grpo(tmp_path: Path) -> Path:
    one = {"gate": 9, "equal": 1}
    others = {f"gate {i}": {"equal": 4, "gate": 1, "wall": 5} for i in (2, 3)}
    return write_run(tmp_path / "grpo", entropy=0.05, reasons={"gate 1": one, **others, "gate 4": {"wrong_sum": 10}})


@pytest.fixture
def clip_cov(tmp_path: Path) -> Path:
    reasons = {f"gate {i}": {"gate": 5, "equal": 3, "wall": 2} for i in (1, 2, 3)} | {"gate 4": {"equal": 6, "gate": 5}}
    return write_run(tmp_path / "clip_cov", entropy=0.3, reasons=reasons)


def test_its_numbers_are_the_runs_own(grpo: Path, clip_cov: Path) -> None:
    """20 of 40 and 35 of 41 are right."""
    assert sentence({"grpo": grpo, "clip_cov": clip_cov}) == (
        "Clip-Cov is right on 85% of the held-out answers, GRPO on 50%; it kept 6 times the entropy and found three of "
        "the four hidden gates, GRPO one."
    )


def test_each_method_has_a_sentence_against_the_first(grpo: Path, clip_cov: Path, tmp_path: Path) -> None:
    none = write_run(tmp_path / "kl_cov", entropy=0.04, reasons={f"gate {i}": {"wrong_sum": 1} for i in range(4)})
    said = sentence({"grpo": grpo, "clip_cov": clip_cov, "kl_cov": none})
    assert said.count("GRPO on 50%") == 2 and said.endswith(
        "KL-Cov is right on 0% of the held-out answers, GRPO on 50%; it kept 0.8 times the entropy and found none of "
        "the four hidden gates, GRPO one."
    )
    assert sentence({"clip_cov": clip_cov}) == (
        "Clip-Cov is right on 85% of the held-out answers and found three of the four hidden gates."
    )


def test_all_gates_are_called_all(grpo: Path, tmp_path: Path) -> None:
    all_four = write_run(tmp_path / "clip_cov", entropy=0.5, reasons={f"gate {i}": {"gate": 9} for i in range(4)})
    assert sentence({"grpo": grpo, "clip_cov": all_four}).endswith("found all of the four hidden gates, GRPO one.")


def test_without_validation_nothing_is_said(grpo: Path, clip_cov: Path) -> None:
    (clip_cov / "validation.jsonl").write_text("")
    assert sentence({"grpo": grpo, "clip_cov": clip_cov}) == ""
    (clip_cov / "validation.jsonl").unlink()
    assert sentence({"grpo": grpo, "clip_cov": clip_cov}) == ""


def test_a_gate_is_found_where_most_of_what_is_right_goes_through_it() -> None:
    def row(source: str, **reasons: int) -> dict:
        return {"source": source, "reasons": reasons}

    rows = [row("a", gate=2, wrong_sum=8), row("a", equal=2), row("b", gate=1), row("b", equal=2), row("c", wall=3)]
    assert gates_found(rows) == {"a": True, "b": False, "c": False}
