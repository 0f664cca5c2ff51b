"""The graders on the labelled answers, and the matrix of docs/grading.md."""

from collections import Counter
from pathlib import Path

import pytest

from tests.reward.confusion import ALONE, COLUMNS, GRADERS, confusion, judge, row
from tests.reward.labelled import read_labelled

DOCS = Path(__file__).parents[2] / "docs" / "grading.md"


@pytest.fixture(scope="module")
def pairs():
    return read_labelled()


def test_the_set_is_large_and_mostly_near_misses(pairs):
    wrong = Counter(pair.category for pair in pairs if pair.label == "wrong")
    assert len(pairs) >= 300 and sum(wrong.values()) >= 0.45 * len(pairs)
    assert len(wrong) >= 20 and min(wrong.values()) >= 10
    assert {pair.label for pair in pairs} == {"right", "wrong"}
    assert len({(pair.response, pair.truth) for pair in pairs}) == len(pairs)


# math-verify alone spends its wall limit on hostile answers: minutes. tests.reward.confusion prints its row.
@pytest.mark.parametrize("task", [name for name in GRADERS if name != ALONE])
def test_the_confusion_matrix_is_the_documented_one(pairs, task):
    verdicts = judge(task, pairs)
    judged = zip(pairs, verdicts, strict=True)
    errors = [(p, v) for p, v in judged if p.label == "wrong" and v.outcome == "right"]
    assert task != "math" or errors == []
    counts = confusion(pairs, verdicts)
    assert sum(counts) == len(pairs) and len(counts) == len(COLUMNS)
    lines = [line for line in DOCS.read_text().splitlines() if line.startswith(row(task, []).rstrip("| "))]
    assert len(lines) == 1
    documented = [int(cell) for cell in lines[0].split("|")[2:-1]]
    assert counts == documented
