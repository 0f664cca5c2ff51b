r"""One LaTeX text as one sympy expression, unevaluated. math-verify reads it; what it misreads is rewritten or refused
before: digits side by side, `\frac123`, repeating decimals, degrees under a sine, words beside a number.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from pyrl.reward.answers import strip_wrappers, tidy

_PLAIN_POWER = re.compile(r"(?<![*])\*\*\s*(\(?-?[0-9]+\)?)(?!\s*(?:\*\*|[0-9.]))")
_CARET_POWER = re.compile(r"\^(-?[0-9]{2,})")
_NUMBER_ROW = re.compile(r"(?:^|[^0-9_])[0-9]+(?:\s|\\[,;: ])+[0-9]")
_MIXED_NUMBER = re.compile(r"(-?[0-9]+)(?:\s|\\[,;: ])+([0-9]+)\s*/\s*([0-9]+)")
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?:(?:\s|\\[,;: ])+[0-9]{3})+(?![0-9])")
_FRAC_OF_DIGITS = re.compile(r"\\frac\s*(?P<top>[0-9]|\{[^{}]*\})\s*(?P<bottom>[0-9])")
_FRAC_OF_DIGIT = re.compile(r"\\frac\s*(?P<top>[0-9])\s*(?=\{)")
_REPEATING = re.compile(r"(?P<whole>[0-9]*)\.(?P<fixed>[0-9]*)\\(?:overline|bar)\s*\{?(?P<cycle>[0-9]+)\}?$")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_DEGREES = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})")
_DIGITS_BEFORE_BRACKET = re.compile(r"(?<![_^0-9.])([0-9][0-9.]*)\s*\((?![^()]*,)")
_BRACKET_BEFORE_BRACKET = re.compile(r"\)\s*(?=\((?![^()]*,))")
_SCIENTIFIC = re.compile(
    r"(?<![A-Za-z0-9_.\\])(?P<value>[0-9]+(?:\.[0-9]*)?)[eE](?P<power>[+-]?[0-9]{1,4})(?![0-9A-Za-z.^])"
)
_FONT_LETTER = re.compile(r"\\math(?:rm|bf|it)\s*\{\s*([a-zA-Z])\s*\}")
_SPACED_LETTER = re.compile(r"(?<=[0-9])\s+(?=[a-zA-Z](?![a-zA-Z]))")
_WORDS = re.compile(r"\\(text(?:rm|bf|it|normal)?|math(?:rm|bf|it)|mbox)\s*\{([^{}]*)\}")
_DIGITS = re.compile(r"[-0-9., ]*")
_LIST_WORDS = frozenset(("", "and", "or", ",", ", and", ", or"))


class UnreadableError(ValueError):
    """math-verify cannot read the text, or is known to misread it."""


@lru_cache(maxsize=1024)
def parse(text: str, *, rewrite: bool = True) -> Any:
    """The unevaluated sympy expression of the whole text; `rewrite=False`: as math-verify itself reads it.

    Raises UnreadableError.
    """
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, normalize_latex

    text = strip_wrappers(text)
    text = _rewrite(text) if rewrite else text
    config = NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    try:
        parsed = _to_sympy(normalize_latex(text, config=config))
    except MemoryError:
        raise
    except Exception as error:  # the LaTeX parser raises bare Exception
        summary = " ".join(str(error).split())[:80]
        raise UnreadableError(f"{type(error).__name__}: {summary}") from error
    if parsed is None or isinstance(parsed, str | list):
        raise UnreadableError("it is not one expression")
    return parsed


def _to_sympy(text: str) -> Any:
    """As `math_verify.parser.parse_latex_cached`, in half the time: the whole text, or else its last equation."""
    from math_verify.parser import get_last_eq

    try:
        return _in_two_stages(text)
    except MemoryError:
        raise
    except Exception:  # the LaTeX parser raises bare Exception
        last = get_last_eq(text)
        if last == text:
            raise
        return _in_two_stages(last)


def _in_two_stages(text: str) -> Any:
    """ANTLR's SLL prediction gives the tree of its default, LL, or a syntax error (ANTLR's documentation of
    PredictionMode); only then LL, which takes most of the time, has to decide."""
    from antlr4.atn.PredictionMode import PredictionMode
    from math_verify.parser import should_treat_as_complex

    is_real = not should_treat_as_complex(text)
    try:
        return _converter(PredictionMode.SLL)(is_real=is_real).parse(text)
    except MemoryError:
        raise
    except Exception:
        return _converter(PredictionMode.LL)(is_real=is_real).parse(text)


@cache
def _converter(mode: Any) -> type:
    """latex2sympy's converter with a parser of this prediction mode."""
    from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy

    class Converter(_Latex2Sympy):
        def create_parser(self, latex_str: str) -> Any:
            parser = super().create_parser(latex_str)
            parser._interp.predictionMode = mode
            return parser

    return Converter


def _rewrite(text: str) -> str:
    _refuse_words(text)
    if _THOUSANDS.fullmatch(text):
        text = re.sub(r"[^0-9+-]", "", text)
    elif mixed := _MIXED_NUMBER.fullmatch(text):
        text = r"{}\frac{{{}}}{{{}}}".format(*mixed.groups())
    if _NUMBER_ROW.search(text):
        raise UnreadableError("numbers side by side")  # math-verify would add them up: 3 31 = 34
    text = tidy(text)
    text = _FONT_LETTER.sub(r" \1 ", text)
    text = _SCIENTIFIC.sub(r"\g<value>\\cdot 10^{\g<power>}", text)
    text = _FRAC_OF_DIGIT.sub(r"\\frac{\g<top>}", text)
    text = _FRAC_OF_DIGITS.sub(_braced_frac, text)
    text = _REPEATING.sub(_repeating_decimal, text)
    if _TRIGONOMETRIC.search(text):
        text = _DEGREES.sub(r"{(\\frac{\1\\pi}{180})}", text)
    text = _DIGITS_BEFORE_BRACKET.sub(r"\1\\cdot (", text)  # math-verify would add: 2(3) = 5
    text = _BRACKET_BEFORE_BRACKET.sub(r")\\cdot ", text)  # and (2)(3) = 5
    text = _SPACED_LETTER.sub("", text).removeprefix("{}")
    return _CARET_POWER.sub(r"^{\1}", _PLAIN_POWER.sub(r"^{\1}", text))


def _refuse_words(text: str) -> None:
    """math-verify would drop them: 34 or more = 34."""
    rest = _WORDS.sub("", text).strip(" .,;$")
    has_number = re.search(r"[0-9]|\\pi", rest) is not None
    for font, words in _WORDS.findall(text) if rest else ():
        is_letter = len(words.strip()) == 1 and (font.startswith("math") or not has_number)
        is_function = font.startswith("math") and not has_number
        if (
            not is_letter
            and not is_function
            and not _DIGITS.fullmatch(words)
            and words.strip().lower() not in _LIST_WORDS
        ):
            raise UnreadableError("words beside a value")


def _braced_frac(match: re.Match[str]) -> str:
    top = match["top"] if match["top"].startswith("{") else f"{{{match['top']}}}"
    return rf"\frac{top}{{{match['bottom']}}}"


def _repeating_decimal(match: re.Match[str]) -> str:
    fixed, cycle = match["fixed"], match["cycle"]
    value = int(match["whole"] or "0") + Fraction(int(fixed or "0"), 10 ** len(fixed))
    value += Fraction(int(cycle), (10 ** len(cycle) - 1) * 10 ** len(fixed))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def in_one_meaning(tree: Any) -> Any:
    """The tree with i as the imaginary unit and real roots of odd degree of negative numbers, evaluated there.

    i stays a symbol where it is an index, and beside j or k, as in vectors.
    """
    from sympy import I, MatrixBase, Symbol

    names = {symbol.name for symbol in tree.free_symbols}
    indices = {symbol.name for symbol in tree.atoms(Symbol)} - names
    if "i" in names and not names & {"j", "k"} and "i" not in indices:
        if isinstance(tree, MatrixBase):
            return tree.applyfunc(in_one_meaning)
        return tree.xreplace({symbol: I for symbol in tree.free_symbols if symbol.name == "i"})
    return tree if isinstance(tree, MatrixBase) else _with_real_roots(tree)


def _with_real_roots(tree: Any) -> Any:
    from sympy import I, Pow, Rational

    roots = {}
    for node in tree.atoms(Pow) if not tree.has(I) else ():
        exponent = node.exp if node.exp.is_Rational or not node.exp.is_number else node.exp.doit()
        if not isinstance(exponent, Rational) or exponent.q % 2 == 0 or exponent.q == 1 or node.base.free_symbols:
            continue
        if node.base.is_extended_negative:
            sign = -1 if exponent.p % 2 else 1
            roots[node] = sign * Pow(-node.base, exponent)
    return tree.xreplace(roots) if roots else tree
