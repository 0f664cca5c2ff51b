"""The confusion matrix of docs/grading.md: `python -m tests.reward.confusion [--errors]` prints it.

Beside the product's graders stands math-verify as its README calls it, but for its alarm signal: it runs in the same
killable processes with the same wall limit, without our size limits.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version

from pyrl.reward import RewardPool, Verdict, tasks
from tests.reward.labelled import Labelled, read_labelled

TIMEOUT_SECONDS = 5.0
ALONE = "math_verify_alone"
GRADERS = {"math": "pyrl, `math`", ALONE: "math-verify {}", "math:paper": "the paper's rules, `math:paper`"}
COLUMNS = [(label, outcome) for label in ("right", "wrong") for outcome in ("right", "wrong", "unjudged")]


def load_math_verify(variant: str) -> tasks.Grader:
    """math-verify and nothing else, as a loader of `pyrl.reward.tasks`."""
    from math_verify import parse, verify

    def grade(response: str, ground_truth: str) -> tasks.RawVerdict:
        wanted = parse(f"${ground_truth}$", parsing_timeout=None, raise_on_error=True)
        same = verify(wanted, parse(response, parsing_timeout=None, raise_on_error=True), timeout_seconds=None)
        return ("right" if same else "wrong"), "math-verify", None

    return grade


def judge(task: str, pairs: Sequence[Labelled]) -> list[Verdict]:
    """Verdicts of one grader on the labelled pairs."""
    with RewardPool(task, 1, TIMEOUT_SECONDS) as pool:
        return pool.grade([(pair.response, pair.truth) for pair in pairs])


def confusion(pairs: Sequence[Labelled], verdicts: Sequence[Verdict]) -> list[int]:
    """Pairs by (label, outcome), in the order of COLUMNS."""
    counts = Counter((pair.label, verdict.outcome) for pair, verdict in zip(pairs, verdicts, strict=True))
    return [counts[column] for column in COLUMNS]


def row(task: str, counts: Sequence[int]) -> str:
    """A line of the table in docs/grading.md."""
    name = GRADERS[task].format(version("math-verify"))
    return f"| {name} | " + " | ".join(map(str, counts)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("graders", nargs="*", default=list(GRADERS), help=f"of {', '.join(GRADERS)}; default all")
    parser.add_argument("--errors", action="store_true", help="print every pair that is judged unlike its label")
    arguments = parser.parse_args()
    pairs = read_labelled()
    tasks.LOADERS[ALONE] = "tests.reward.confusion:load_math_verify"
    for task in arguments.graders:
        verdicts = judge(task, pairs)
        print(row(task, confusion(pairs, verdicts)), flush=True)
        for pair, verdict in zip(pairs, verdicts, strict=True):
            if arguments.errors and pair.label != verdict.outcome:
                text = f"{pair.response[:80]!r} for {pair.truth!r}: {verdict.outcome} ({verdict.reason[:80]})"
                print(f"  {pair.category}, {pair.label}: {text}")


if __name__ == "__main__":
    main()
