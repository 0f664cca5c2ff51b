r"""Mathematical answers: the last `\boxed{}` or `Answer:` line against a LaTeX ground truth.

Text and integers are compared here, in microseconds; everything else goes to math-verify (sympy), which can hang, so it
runs only inside a grader process that is killed at the wall limit. Never `signal.alarm`: it works in the main thread
alone and does not interrupt C code.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from pyrl.reward.answers import as_integer, extract_answer, last_boxed, normalise, strip_wrappers, tidy
from pyrl.reward.choices import choice_content, split_choice
from pyrl.reward.equality import equal
from pyrl.reward.latex import in_one_meaning, parse
from pyrl.reward.lists import list_readings, split_list
from pyrl.reward.prose import sentence, without_prose
from pyrl.reward.size_limits import OverLimitError, check_text, check_tree
from pyrl.reward.tasks import (
    CRASH,
    DIFFERENT,
    EQUAL,
    NO_ANSWER,
    OVER_LIMIT,
    UNREADABLE_ANSWER,
    UNREADABLE_GROUND_TRUTH,
    Grader,
    RawVerdict,
)
from pyrl.reward.unit_names import DEGREE, PERCENT
from pyrl.reward.units import Quantity, split_unit

if TYPE_CHECKING:
    from pyrl.types import Verdict

_RATIO = re.compile(r"[0-9.]+\s*:\s*[0-9.]+")
_CLOCK = re.compile(r"[0-9]{1,2}\s*:\s*[0-5][0-9]")


def grade_math(response: str, ground_truth: str, *, timeout: float = 5.0) -> Verdict:
    """Compare the final answer of `response` with `ground_truth`. Safe from any thread.

    Args:
        response: a model's text; its last closed `\\boxed{}` counts, else its last `Answer:` line.
        ground_truth: LaTeX or plain text, with or without `$` or `\\boxed{}` around it.
        timeout: wall limit of the comparison, seconds. Starting a grader process and waiting for a free one (at most
            four are kept) do not count.

    Returns:
        right or wrong; wrong also where no answer is found or the answer is over the size limits of
        `pyrl.reward.size_limits`; unjudged on timeout, on a crash, and for a ground truth that cannot be read.

    Raises:
        TypeError: an argument is not a string. ValueError: `timeout` is not finite and positive. Never for any strings.
    """
    from pyrl.reward.shared import grade_in_shared_pool
    from pyrl.types import Verdict

    for name, value in (("response", response), ("ground_truth", ground_truth)):
        if not isinstance(value, str):
            raise TypeError(f"{name}: want str, got {type(value).__name__}")
    if not (math.isfinite(timeout) and timeout > 0):
        raise ValueError(f"timeout: want finite seconds above 0, got {timeout!r}")
    quick = grade_text(response, ground_truth)
    return Verdict(*quick) if quick else grade_in_shared_pool("math", response, ground_truth, timeout)


def grade_text(response: str, ground_truth: str) -> RawVerdict | None:
    """The verdict, as far as text, units and plain integers decide it; None: math-verify must. Linear time."""
    truth = _bare_truth(ground_truth)
    if not truth:
        return "unjudged", f"{UNREADABLE_GROUND_TRUTH}: it is empty", None
    answer = extract_answer(response)
    if answer is None:
        return "wrong", NO_ANSWER, None
    if normalise(answer) == normalise(truth):
        return "right", EQUAL, answer
    try:
        check_text(truth)
    except OverLimitError as error:
        return "unjudged", f"{UNREADABLE_GROUND_TRUTH}: {error}", answer
    try:
        check_text(answer)
    except OverLimitError as error:
        return "wrong", f"{OVER_LIMIT}: {error}", answer
    same = _compare_text(truth, answer)
    return None if same is None else (("right", EQUAL, answer) if same else ("wrong", DIFFERENT, answer))


def _compare_text(truth: str, answer: str) -> bool | None:
    """None: text does not decide. `truth` and `answer` are whole, with the letter of a choice."""
    verdict = _compare_choices(truth, answer)
    if verdict is not None:
        return verdict
    wanted, got = (split_unit(value_text(text)) for text in (truth, answer))
    if wanted.unit and got.unit and wanted.unit != got.unit:
        return False
    sentences = sentence(wanted.value), sentence(got.value)
    if sentences != (None, None):
        return sentences[0] == sentences[1]
    integers = as_integer(normalise(wanted.value)), as_integer(normalise(got.value))
    if None in integers or (wanted.unit != got.unit and PERCENT in (wanted.unit, got.unit)):
        return _compare_ratios(wanted.value, got.value)
    return integers[0] == integers[1]


def _compare_choices(truth: str, answer: str) -> bool | None:
    """By their letters; a letter on one side alone says nothing."""
    choice, chosen = split_choice(truth), split_choice(answer)
    if not choice or not chosen:
        return None
    if any(found[1].strip() and choice_content(text) is None for found, text in ((choice, truth), (chosen, answer))):
        return None
    if choice[0] == chosen[0] and choice[1].strip() and chosen[1].strip():
        return None  # what the letter stands for decides
    return choice[0] == chosen[0]


def _compare_ratios(wanted: str, got: str) -> bool | None:
    """`12:30` may be a time: it is no fraction, and 6:15 is no other way to write it."""
    if _RATIO.fullmatch(got) and not _RATIO.fullmatch(wanted):
        return False
    return False if _CLOCK.fullmatch(wanted) and _CLOCK.fullmatch(got) and normalise(wanted) != normalise(got) else None


def value_text(text: str) -> str:
    """The text of the value: without a choice's letter, with one way to write what has several, without prose."""
    content = choice_content(text)
    return without_prose(tidy(strip_wrappers(text if content is None else content)))


def grade(response: str, ground_truth: str) -> RawVerdict:
    """The whole comparison. Can hang: call it in a grader process only."""
    quick = grade_text(response, ground_truth)
    if quick:
        return quick
    answer = extract_answer(response)
    assert answer is not None  # grade_text has dealt with it
    truth = _bare_truth(ground_truth)
    wanted, got = split_unit(value_text(truth)), split_unit(value_text(answer))
    try:
        wanted_values = _read_all(wanted, got)
    except ValueError as error:
        return "unjudged", f"{UNREADABLE_GROUND_TRUTH}: {error}", answer
    try:
        got_values = _read_all(got, wanted)
    except OverLimitError as error:
        return "wrong", f"{OVER_LIMIT}: {error}", answer
    except ValueError as error:
        return "wrong", f"{UNREADABLE_ANSWER}: {error}", answer
    kinds = _bracket_kind(wanted.value), _bracket_kind(got.value)
    if kinds[0] != kinds[1] and "" not in kinds:
        return "wrong", DIFFERENT, answer
    try:
        same = any(equal(a, b) for a in wanted_values for b in got_values)
    except Exception as error:  # sympy raises anything at all; it must not be taken for a wrong answer
        return "unjudged", f"{CRASH}: {type(error).__name__}: {str(error)[:200]}", answer
    return ("right", EQUAL, answer) if same else ("wrong", DIFFERENT, answer)


def load_grader(variant: str) -> Grader:
    """The loader of `pyrl.reward.tasks`: imports sympy and warms the LaTeX parser up, so that no item pays for it."""
    from pyrl.reward import paper_math

    chosen = {"": grade, "paper": paper_math.grade}[variant]
    for answer, truth in ((r"\frac{1}{2}", "0.5"), (r"2\sqrt{2}", r"\sqrt{8}"), (r"(x+1)^2", "x^2"), ("[1,2)", "1")):
        chosen(rf"\boxed{{{answer}}}", truth)
    return chosen


def _bare_truth(ground_truth: str) -> str:
    boxed = last_boxed(ground_truth)
    return strip_wrappers(ground_truth if boxed is None else boxed)


def _bracket_kind(text: str) -> str:
    """Braces say set, round and square brackets say tuple or interval; math-verify takes one for the other."""
    if split_list(text):
        return ""
    text = normalise(text)
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return "set"
    return "tuple" if text[:1] in ("(", "[") and text[-1:] in (")", "]") and "," in text else ""


def _readings(quantity: Quantity, other: Quantity) -> list[str]:
    """What the text may stand for beside one with another unit: 50% is 50 and 0.5, 90 degrees are 90 and pi/2."""
    value = quantity.value
    if quantity.unit == PERCENT != other.unit:
        return [value, rf"\frac{{{value}}}{{100}}"]
    if quantity.unit == DEGREE != other.unit and r"\pi" in other.value:
        return [rf"\frac{{({value})\pi}}{{180}}"]
    return [value]


def _read_all(quantity: Quantity, other: Quantity) -> list[Any]:
    return list_readings(quantity.value, read) or [read(text) for text in _readings(quantity, other)]


def read(text: str) -> Any:
    """The unevaluated sympy tree. Raises ValueError: it cannot be read, or is over the size limits."""
    expression = parse(text)
    check_tree(expression)
    return in_one_meaning(expression)
