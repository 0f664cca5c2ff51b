"""The benchmark of the graders measures what it says."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from benchmarks import grading
from pyrl.reward import RewardPool
from pyrl.reward.math import grade, grade_text

COUNT = 240


def test_text_decides_the_one_kind_and_never_the_other() -> None:
    assert all(grade_text(i.response, i.truth)[0] == "right" for i in grading.equal_items(0, COUNT))
    assert not any(grade_text(i.response, i.truth) for i in grading.other_form_items(0, COUNT))


def test_half_of_the_other_forms_are_right_and_the_grader_knows_which() -> None:
    items = grading.other_form_items(1000, 24)  # all forms, right and wrong
    assert sum(item.is_right for item in items) == 12
    assert [grade(i.response, i.truth)[0] for i in items] == ["right" if i.is_right else "wrong" for i in items]


@pytest.mark.parametrize("make", [grading.equal_items, grading.other_form_items])
def test_no_item_comes_twice(make) -> None:
    items = make(0, COUNT) + make(COUNT, COUNT)
    assert len({(item.response, item.truth) for item in items}) == 2 * COUNT


def test_files_and_table_hold_both_contenders(tmp_path: Path) -> None:
    grading.main(["--scale", "0.01", "--repeats", "3", "--out", str(tmp_path)])
    (json_file,), (markdown_file,) = tmp_path.glob("*.json"), tmp_path.glob("*.md")
    assert json_file.stem == markdown_file.stem and json_file.stem.startswith("grading_")
    results, markdown = json.loads(json_file.read_text()), markdown_file.read_text()
    assert f"- command: `{results['command']}`" in markdown and "--repeats 3" in results["command"]
    lines = [line for line in markdown.splitlines() if line.startswith("| ")][2:]
    for rates, line in zip(results["rates"], lines, strict=True):
        ours, alone = ([p["gradings_per_second"] for p in rates[name]] for name in ("pyrl", "math_verify"))
        assert len(ours) == len(alone) == 3 and min(ours + alone) > 0
        ratio = statistics.median(ours) / statistics.median(alone)
        assert line.startswith(f"| {rates['answers']} |") and f"| {ratio:.1f} |" in line


def test_a_wrong_verdict_stops_the_benchmark() -> None:
    def mislabelled(start: int, count: int) -> list[grading.Item]:
        return [grading.Item(r"\boxed{34}", "35", True)] * count

    with RewardPool("math", 1, 10.0) as pool, pytest.raises(SystemExit, match="the verdict is wrong"):
        grading.measure("mislabelled", mislabelled, pool, 2, 1)


def test_a_trial_does_not_take_the_place_of_results() -> None:
    assert grading.folder(1.0).name == "results"
    assert grading.folder(0.5).parts[-2:] == ("build", "bench")
