r"""Mathematical answers: the last `\boxed{}` or `Answer:` line against a LaTeX ground truth.

Text and integers are compared here, in microseconds; everything else goes to math-verify (sympy), which can hang, so it
runs only inside a grader process that is killed at the wall limit. Never `signal.alarm`: it works in the main thread
alone and does not interrupt C code.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pyrl.reward.answers import as_integer, extract_answer, last_boxed, normalise, strip_wrappers
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

if TYPE_CHECKING:
    from pyrl.types import Verdict

FLOAT_DECIMALS = 6
"""Decimals to which a decimal answer must agree with an exact, non-integer ground truth (1/3 ~ 0.333333)."""

_PLAIN_POWER = re.compile(r"(?<![*])\*\*\s*(\(?-?[0-9]+\)?)(?!\s*(?:\*\*|[0-9.]))")
_CARET_POWER = re.compile(r"\^(-?[0-9]{2,})")
_NUMBER_ROW = re.compile(r"(?:^|[^0-9_])[0-9]+(?:\s|\\[,;: ])+[0-9]")
_MIXED_NUMBER = re.compile(r"(-?[0-9]+)(?:\s|\\[,;: ])+([0-9]+)\s*/\s*([0-9]+)")
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?:(?:\s|\\[,;: ])+[0-9]{3})+(?![0-9])")


class UnreadableError(ValueError):
    """math-verify cannot read the text."""


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
    """The verdict, as far as text and plain integers decide it; None: math-verify must. Linear time."""
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
    wanted, got = as_integer(normalise(truth)), as_integer(normalise(answer))
    if wanted is None or got is None:
        return None
    return ("right", EQUAL, answer) if wanted == got else ("wrong", DIFFERENT, answer)


def grade(response: str, ground_truth: str) -> RawVerdict:
    """The whole comparison. Can hang: call it in a grader process only."""
    quick = grade_text(response, ground_truth)
    if quick:
        return quick
    answer = extract_answer(response)
    assert answer is not None  # grade_text has dealt with it
    truth = _bare_truth(ground_truth)
    try:
        wanted = _parse(truth)
        check_tree(wanted)
    except ValueError as error:
        return "unjudged", f"{UNREADABLE_GROUND_TRUTH}: {error}", answer
    try:
        got = _parse(answer)
        check_tree(got)
    except OverLimitError as error:
        return "wrong", f"{OVER_LIMIT}: {error}", answer
    except ValueError as error:
        return "wrong", f"{UNREADABLE_ANSWER}: {error}", answer
    if _bracket_kind(truth) != _bracket_kind(answer) and "" not in (_bracket_kind(truth), _bracket_kind(answer)):
        return "wrong", DIFFERENT, answer
    try:
        same = _equal(wanted, got)
    except Exception as error:  # sympy raises anything at all; it must not be taken for a wrong answer
        return "unjudged", f"{CRASH}: {type(error).__name__}: {str(error)[:200]}", answer
    return ("right", EQUAL, answer) if same else ("wrong", DIFFERENT, answer)


def load_grader(variant: str) -> Grader:
    """The loader of `pyrl.reward.tasks`: imports sympy and warms the LaTeX parser up, so that no item pays for it."""
    del variant
    for answer, truth in ((r"\frac{1}{2}", "0.5"), (r"2\sqrt{2}", r"\sqrt{8}"), (r"(x+1)^2", "x^2"), ("[1,2)", "1")):
        grade(rf"\boxed{{{answer}}}", truth)
    return grade


def _bare_truth(ground_truth: str) -> str:
    boxed = last_boxed(ground_truth)
    return strip_wrappers(ground_truth if boxed is None else boxed)


def _bracket_kind(text: str) -> str:
    """Braces say set, round and square brackets say tuple or interval; math-verify takes one for the other."""
    text = normalise(text)
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return "set"
    return "tuple" if text[:1] in ("(", "[") and text[-1:] in (")", "]") and "," in text else ""


def _equal(wanted: Any, got: Any) -> bool:
    from math_verify import verify
    from sympy import Float, Integer, Rational

    if isinstance(wanted, Integer) and isinstance(got, Float):
        return bool(Rational(got) == wanted)  # 34.0 is 34, 33.9999999 is not
    return verify(wanted, got, float_rounding=FLOAT_DECIMALS, timeout_seconds=None, raise_on_error=True)


@lru_cache(maxsize=1024)
def _parse(text: str) -> Any:
    """The unevaluated sympy expression of the whole text. Raises UnreadableError."""
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, normalize_latex
    from math_verify.parser import parse_latex_cached

    text = strip_wrappers(text)
    if _THOUSANDS.fullmatch(text):
        text = re.sub(r"[^0-9+-]", "", text)
    elif mixed := _MIXED_NUMBER.fullmatch(text):
        text = r"{}\frac{{{}}}{{{}}}".format(*mixed.groups())
    if _NUMBER_ROW.search(text):
        raise UnreadableError("numbers side by side")  # math-verify would add them up: 3 31 = 34
    text = _CARET_POWER.sub(r"^{\1}", _PLAIN_POWER.sub(r"^{\1}", text))
    config = NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    try:
        parsed = parse_latex_cached(normalize_latex(text, config=config))
    except MemoryError:
        raise
    except Exception as error:  # the LaTeX parser raises bare Exception
        summary = " ".join(str(error).split())[:80]
        raise UnreadableError(f"{type(error).__name__}: {summary}") from error
    if parsed is None or isinstance(parsed, str | list):
        raise UnreadableError("it is not one expression")
    return parsed
