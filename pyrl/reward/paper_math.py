r"""The rule set by which arXiv 2505.22617 was trained and evaluated, as `math:paper`: an answer is right if mathd-style
normal forms are equal OR sympy finds the difference zero OR math-verify finds it equal.

Written from the meaning of the rules in the authors' public code (PRIME-RL/Entropy-Mechanism-of-RL, `entropy_math`,
which goes back to Hendrycks' MATH and to PRM800K). It forgives and refuses what they do: units are dropped, fractions
must be reduced, an integer must be written as one, only a box counts. Deviations: a timeout, a crash, an empty and an
oversized ground truth are unjudged (there: wrong), the size limits of `pyrl.reward.size_limits` hold, and sympy gets a
small grammar instead of Python's `eval`. docs/grading.md compares both point by point.
"""

from __future__ import annotations

import re

from pyrl.reward.answers import mathd_form, strip_wrappers, without_text
from pyrl.reward.latex import parse
from pyrl.reward.size_limits import OverLimitError, check_text, check_tree
from pyrl.reward.tasks import (
    DIFFERENT,
    EQUAL,
    NO_ANSWER,
    OVER_LIMIT,
    UNREADABLE_GROUND_TRUTH,
    RawVerdict,
)

_UNITS = re.compile(
    r"(?:degree|cm|centimeter|meter|mile|second|minute|hour|day|week|month|year|foot|feet|inch|yard)(?:es)?(?:s)?"
    r" *(?:\^[0-9]+)?"
)
_MAGNITUDES = {"million": 6, "billion": 9, "trillion": 12}
_GRAMMAR = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+|sqrt|pi|[a-z]|[-+*/^()!])*")
_TOWER = re.compile(r"\^\{|\^\(|\^[0-9]+\^|\^[0-9][0-9]+")


def grade(response: str, ground_truth: str) -> RawVerdict:
    """The whole comparison. Can hang: call it in a grader process only."""
    truth = _last_box(ground_truth) if r"\boxed" in ground_truth else ground_truth
    if not truth or not truth.strip():
        return "unjudged", f"{UNREADABLE_GROUND_TRUTH}: it is empty", None
    answer = _last_box(response)
    if answer is None:
        return "wrong", NO_ANSWER, None
    if mathd_form(answer) == mathd_form(truth):
        return "right", EQUAL, answer
    try:
        check_text(truth)
    except OverLimitError as error:
        return "unjudged", f"{UNREADABLE_GROUND_TRUTH}: {error}", answer
    try:
        check_text(answer)
        same = _sympy_equal(answer, truth) or _math_verify_equal(answer, truth)
    except OverLimitError as error:
        return "wrong", f"{OVER_LIMIT}: {error}", answer
    return ("right", EQUAL, answer) if same else ("wrong", DIFFERENT, answer)


def _last_box(text: str) -> str | None:
    r"""From the last `\boxed`, or the last `\fbox` of a text without `\boxed`, to the brace that closes it.

    None: there is no box, the brace does not follow the last one at once (`\boxed 42`), or it is not closed.
    """
    name = r"\boxed" if r"\boxed" in text else r"\fbox"
    start = text.rfind(name)
    opening = start + len(name)
    if start < 0 or text[opening : opening + 1] != "{":
        return None
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[opening + 1 : place]
    return None


def _plain(text: str) -> str:
    r"""PRM800K's normal form: units and typography dropped, `\frac{a}{b}` as (a)/(b), lower case, no blanks."""
    text = without_text(text.strip())
    text = re.sub(r"\\?[%$]", "", text).replace(" or ", " , ").replace(" and ", " , ")
    for word, power in _MAGNITUDES.items():
        text = text.replace(word, f"*10^{power}")
    text = re.sub(r"\^ *(?:\\circ|\{\\circ\})", "", _UNITS.sub("", text))
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    text = re.sub(r"\\[td]frac", r"\\frac", re.sub(r",\\! *", "", text))
    text = _unfold(text)
    text = re.sub(r"- *", "-", re.sub(r"([0-9]) +([0-9(])", r"\1+\2", text.strip()))
    text = re.sub(r"[\s{}]", "", text).lower()
    if re.fullmatch(r"-?[0-9]+\.0*", text):
        text = text.partition(".")[0]
    return text.replace(",", "") if re.fullmatch(r"-?[0-9]{1,3}(?:,[0-9]{3})+", text) else text


def _unfold(text: str) -> str:
    group = r"(?:\{([^{}]*)\}|([0-9a-z]))"
    for _ in range(24):  # nesting that the size limits let pass
        before = text
        text = re.sub(rf"\\sqrt *{group}", lambda m: f"sqrt({m[1] or m[2]})", text)
        text = re.sub(rf"\\frac *{group} *{group}", lambda m: f" ({m[1] or m[2]})/({m[3] or m[4]})", text)
        if text == before:
            break
    text = re.sub(r"\(([0-9]+)\)/\(([0-9]+)\)", r"\1/\2", text)
    text = re.sub(r"\\left|\\right|\\[,;:! ]", "", text)
    return re.sub(r"\\pi(?![a-z])", "pi", re.sub(r"\\(?:cdot|times)(?![a-z])", "*", text))


def _elements(text: str) -> list[str]:
    brackets = "()[]"
    if len(text) > 2 and text[0] in brackets and text[-1] in brackets and not set(text[1:-1]) & set(brackets):
        return text[1:-1].split(",")
    return [text]


def _sympy_equal(answer: str, truth: str) -> bool:
    got, wanted = _plain(answer), _plain(truth)
    if not got or not wanted:
        return False
    if got == wanted:
        return True
    wanted_parts, got_parts = _elements(wanted), _elements(got)
    if len(wanted_parts) != len(got_parts):
        return False
    if len(wanted_parts) > 1 and (wanted[0] != got[0] or wanted[-1] != got[-1]):
        return False
    return all(_element_equal(a, b) for a, b in zip(wanted_parts, got_parts, strict=True))


def _element_equal(wanted: str, got: str) -> bool:
    fraction, integer = re.compile(r"-?[0-9]+/[1-9][0-9]*"), re.compile(r"-?[0-9]+")
    if fraction.fullmatch(wanted) and fraction.fullmatch(got):
        return wanted == got  # fractions must be reduced
    if integer.fullmatch(wanted):
        return bool(integer.fullmatch(got)) and int(wanted) == int(got)
    return not integer.fullmatch(got) and _difference_is_zero(wanted, got)


def _difference_is_zero(wanted: str, got: str) -> bool:
    import sympy
    from sympy.parsing.sympy_parser import (
        factorial_notation,
        implicit_multiplication_application,
        parse_expr,
        standard_transformations,
    )

    text = f"({wanted})-({got})"
    letters = set(re.sub(r"sqrt|frac", "", text)) & set("abcdefghijklmnopqrstuvwxyz")
    if len(letters) > 2 or _TOWER.search(text) or not _GRAMMAR.fullmatch(text):
        return False
    names = {
        name: getattr(sympy, name) for name in ("Integer", "Float", "Symbol", "Function", "factorial", "sqrt", "pi")
    }
    transformations = (*standard_transformations, factorial_notation, implicit_multiplication_application)
    try:
        tree = parse_expr(
            text.replace("^", "**"),
            global_dict=names | {"__builtins__": {}},
            transformations=transformations,
            evaluate=False,
        )
    except (SyntaxError, TypeError, AttributeError, NameError, ValueError):
        return False  # not in the grammar of this rule; math-verify has its turn
    check_tree(tree)
    return bool(sympy.simplify(tree.doit()) == 0)


def _math_verify_equal(answer: str, truth: str) -> bool:
    from math_verify import verify

    try:
        wanted = _raw_parse(truth)
        got = _raw_parse(answer)
    except OverLimitError:
        raise
    except ValueError:
        return False
    return verify(wanted, got, timeout_seconds=None)


def _raw_parse(text: str) -> object:
    tree = parse(strip_wrappers(text), rewrite=False)
    check_tree(tree)
    return tree
