"""Python programs against tests, in a sandbox: standard output, function values or asserts.

The program is the last closed ```python (or unlabelled) block of the response, else an unclosed last one. Ground truths
are JSON in the formats of the public sets:

- `{"inputs": ["3\\n"], "outputs": ["9\\n"]}` (APPS, TACO, PRIME's Eurus-2-RL-Code): standard output for standard input;
  with `"fn_name"`, the value of that function (or method of `Solution`) for a list of arguments;
- `{"asserts": ["assert f(2) == 4"]}` (MBPP, AceCode), or a list of such lines alone;
- `{"test": "def check(candidate): ...", "entry_point": "f"}` (HumanEval), with `"prompt"` where the response only goes
  on with it.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from pyrl.reward.sandbox import SandboxError, check_available, run_scripts, run_tests
from pyrl.reward.tasks import (
    DIFFERENT,
    EQUAL,
    NO_ANSWER,
    PROGRAM_SECONDS,
    TIMEOUT,
    UNREADABLE_GROUND_TRUTH,
    Grader,
    GraderUnavailableError,
    RawVerdict,
)

if TYPE_CHECKING:
    from pyrl.types import Verdict

GRACE_SECONDS = 30.0
"""`grade_code` waits so much longer than the program's own limit: for the sandbox, on a busy machine."""
RELATIVE = 1e-6
"""To which a printed number must agree where the expected one is written with a point or an exponent."""

_BLOCK = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_LANGUAGES = ("", "python", "py", "python3")


class TestsError(ValueError):
    """The ground truth is in none of the formats."""


def grade_code(program: str, tests: str, *, timeout: float = PROGRAM_SECONDS) -> Verdict:
    """Run the last code block of `program` (a model's response) against `tests`. Safe from any thread.

    Args:
        tests: JSON (formats: this module).
        timeout: wall limit of all tests together, seconds; a program that needs longer is wrong.

    Returns:
        right or wrong; unjudged where the tests cannot be read, or the sandbox fails.

    Raises:
        TypeError: an argument is not a string. ValueError: `timeout` is not finite and positive.
        ConfigError: this machine cannot isolate programs.
    """
    for name, text in (("program", program), ("tests", tests)):
        if not isinstance(text, str):
            raise TypeError(f"{name} {text!r}: want a string")
    if not (math.isfinite(timeout) and timeout > 0):
        raise ValueError(f"timeout {timeout}: want finite seconds above 0")
    from pyrl.reward.shared import grade_in_shared_pool

    return grade_in_shared_pool(f"code:{timeout:g}", program, tests, timeout + GRACE_SECONDS)


def load_grader(variant: str) -> Grader:
    """`variant`: seconds for a program, or "". Raises GraderUnavailableError where programs cannot be isolated."""
    seconds = float(variant) if variant else PROGRAM_SECONDS
    try:
        check_available()
    except SandboxError as error:
        raise GraderUnavailableError(f"reward.task 'code': {error}") from error
    return lambda response, ground_truth: judge(response, ground_truth, seconds)


def judge(response: str, ground_truth: str, seconds: float) -> RawVerdict:
    """(outcome, reason, program). Raises SandboxError."""
    try:
        tests = read_tests(ground_truth)
    except TestsError as error:
        return "unjudged", f"{UNREADABLE_GROUND_TRUTH}: {error}", None
    program = extract_program(response)
    if program is None:
        return "wrong", NO_ANSWER, None
    program = tests.get("prompt", "") + program
    if "inputs" not in tests:
        found = run_tests(program, tests["test"], seconds, entry_point=tests.get("entry_point"))
        reason = {"right": EQUAL, "wrong": TIMEOUT if found.reason == "timeout" else DIFFERENT}.get(
            found.outcome, UNREADABLE_GROUND_TRUTH
        )
        return found.outcome, f"{reason}: {found.reason}", program
    if "fn_name" in tests:
        found = run_tests(program, _as_asserts(tests), seconds)
        return found.outcome, f"{EQUAL if found.outcome == 'right' else DIFFERENT}: {found.reason}", program
    return *_judge_output(program, tests, seconds), program


def extract_program(response: str) -> str | None:
    """The last block of Python; None where there is none."""
    blocks = [match[2] for match in _BLOCK.finditer(response) if match[1].lower() in _LANGUAGES]
    return blocks[-1] if blocks and blocks[-1].strip() else None


def read_tests(ground_truth: str) -> dict[str, Any]:
    """`inputs` and `outputs` with an optional `fn_name`, or `test` with optional `entry_point` and `prompt`."""
    try:
        tests = json.loads(ground_truth)
    except (ValueError, RecursionError) as error:
        raise TestsError(f"not JSON: {error}") from error
    if isinstance(tests, list):
        tests = {"asserts": tests}
    if not isinstance(tests, dict):
        raise TestsError(f"{type(tests).__name__}, not an object")
    if "asserts" in tests:
        lines = tests["asserts"]
        if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
            raise TestsError("asserts: want a list of at least one line of Python")
        return {"test": "\n".join(lines)}
    if "inputs" in tests:
        return _read_pairs(tests)
    for name in ("test", "entry_point", "prompt"):
        if name in tests and not isinstance(tests[name], str):
            raise TestsError(f"{name}: want a string")
    if "test" not in tests:
        raise TestsError("none of the keys inputs, asserts and test")
    return tests


def _read_pairs(tests: dict[str, Any]) -> dict[str, Any]:
    inputs, outputs = tests["inputs"], tests.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs) or not inputs:
        raise TestsError("inputs and outputs: want two lists of one length, at least 1")
    if "fn_name" in tests and tests["fn_name"] is not None:
        if not str(tests["fn_name"]).isidentifier() or not all(isinstance(each, list) for each in inputs):
            raise TestsError("fn_name: want an identifier, and inputs that are lists of arguments")
        return {"inputs": inputs, "outputs": outputs, "fn_name": tests["fn_name"]}
    if not all(isinstance(text, str) for text in [*inputs, *outputs]):
        raise TestsError("inputs and outputs: want strings")
    return {"inputs": inputs, "outputs": outputs}


def _as_asserts(tests: dict[str, Any]) -> str:
    """A tuple counts as the list that JSON made of it; an expected `[x]` also as `x` (TACO wraps values)."""
    lines = ["def _plain(x):", "    return [_plain(i) for i in x] if isinstance(x, (list, tuple)) else x"]
    for arguments, expected in zip(tests["inputs"], tests["outputs"], strict=True):
        lines.append(f"_found = _plain({tests['fn_name']}(*{arguments!r}))")
        wrapped = f" or [_found] == {expected!r}" if isinstance(expected, list) and len(expected) == 1 else ""
        lines.append(f"assert _found == {expected!r}{wrapped}")
    return "\n".join(lines)


def _judge_output(program: str, tests: dict[str, Any], seconds: float) -> tuple[str, str]:
    number = 0
    for run, expected in zip(run_scripts(program, tests["inputs"], seconds), tests["outputs"], strict=False):
        number += 1
        if run.problem is not None:
            kind = TIMEOUT if run.problem == "timeout" else DIFFERENT
            return "wrong", f"{kind}: test {number}: {run.problem}"
        if not same_output(run.stdout, expected):
            return "wrong", f"{DIFFERENT}: test {number}"
    return "right", f"{EQUAL}: {number} tests"


def same_output(found: str, expected: str) -> bool:
    """Line by line and word by word; numbers written with a point or an exponent within `RELATIVE`."""
    lines, wanted = ([line.split() for line in text.strip().splitlines()] for text in (found, expected))
    if [len(line) for line in lines] != [len(line) for line in wanted]:
        return False
    pairs = (pair for line, want in zip(lines, wanted, strict=True) for pair in zip(line, want, strict=True))
    return all(word == want or _same_number(word, want) for word, want in pairs)


def _same_number(word: str, want: str) -> bool:
    if not re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+(\.\d*)?[eE][+-]?\d+)", want):
        return False
    try:
        return math.isclose(float(word), float(want), rel_tol=RELATIVE, abs_tol=RELATIVE)
    except ValueError:
        return False
