"""What a quickstart found, in one sentence of its own numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pyrl.analysis.records import load_run
from pyrl.evaluation.held_out import last_questions
from pyrl.reward.ring_walk import EQUAL, GATE

NAMES = {"grpo": "GRPO", "clip_cov": "Clip-Cov", "kl_cov": "KL-Cov"}
WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FOUND_SHARE = 0.5
"""A gate is found where so much of what is right for its start places goes through it; by chance one in 24 would."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one method."""

    name: str
    right: float
    """Share of the held-out answers after the last step."""
    entropy: float
    """Nats a token, mean of the last steps."""
    gates_found: int
    gates: int


def outcome(method: str, run_folder: Path) -> Outcome | None:
    """From the records of its run; None where it validated nothing."""
    last = last_questions(run_folder)
    if not last:
        return None
    found = gates_found(last)
    return Outcome(
        name=NAMES[method],
        right=sum(row["right"] for row in last) / sum(row["samples"] - row["unjudged"] for row in last),
        entropy=load_run(run_folder).end("entropy"),
        gates_found=sum(found.values()),
        gates=len(found),
    )


def gates_found(questions: list[dict]) -> dict[str, bool]:
    """Data source, which is a part of the start places with a gate of its own -> whether its gate is found. Rows of
    `validation.jsonl` of one step."""
    reasons: dict[str, Counter[str]] = {}
    for row in questions:
        reasons.setdefault(row["source"], Counter()).update(row["reasons"])
    return {
        source: count[GATE] >= FOUND_SHARE * max(1, count[GATE] + count[EQUAL]) for source, count in reasons.items()
    }


def sentence(runs: Mapping[str, Path]) -> str:
    """`Clip-Cov is right on 86% of the held-out answers, GRPO on 68%; it kept 7.5 times the entropy and found all of
    the four hidden gates, GRPO one.` `runs`: method -> run folder, the baseline first. Empty where a run validated
    nothing (`validation.every=0`)."""
    outcomes = [outcome(method, folder) for method, folder in runs.items()]
    if None in outcomes:
        return ""
    baseline, *others = outcomes
    if not others:
        return (f"{baseline.name} is right on {baseline.right:.0%} of the held-out answers and found "
                f"{_of_all(baseline)}.")  # fmt: skip
    return " ".join(_against(other, baseline) for other in others)


def _against(one: Outcome, baseline: Outcome) -> str:
    return (
        f"{one.name} is right on {one.right:.0%} of the held-out answers, {baseline.name} on {baseline.right:.0%}; "
        f"it kept {one.entropy / baseline.entropy:.2g} times the entropy and found {_of_all(one)}, "
        f"{baseline.name} {WORDS[baseline.gates_found]}."
    )


def _of_all(of: Outcome) -> str:
    found = "all" if of.gates_found == of.gates > 1 else WORDS[of.gates_found]
    return f"{found} of the {WORDS[of.gates]} hidden gates"
