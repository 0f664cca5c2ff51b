r"""A form that equal mathematical answers share: `\frac14`, `1/4`, `.25` and `25\%` are `1/4`.

The grader compares two answers; counting votes takes a form of each, so that a thousand samples cost a thousand
readings. Forms are finer than the grader where its "equal" is no equivalence: decimals are exact (0.333333 is not
1/3), and 25% is 0.25 alone, where the grader takes it for 25 too. They tell apart what the grader does, with one
deviation: `(B)` and `(B) 25` are one choice, for it is the letter that answers.

Numbers that are no fractions agree in 50 digits, and terms with symbols in their values at six points, which the names
of the symbols choose: nothing is simplified, which takes sympy seconds. Equations in several symbols agree up to a
factor, and not after they are solved for one of them. Letters alone are a word: `ab` is not `ba`. What cannot be read
is its text.
"""

from __future__ import annotations

import hashlib
import json
import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from pyrl.reward.answers import as_integer, normalise
from pyrl.reward.choices import split_choice
from pyrl.reward.lists import list_readings
from pyrl.reward.math import read, value_text
from pyrl.reward.size_limits import OverLimitError, check_text
from pyrl.reward.tasks import EQUAL, Grader, RawVerdict
from pyrl.reward.unit_names import PERCENT
from pyrl.reward.units import split_unit

if TYPE_CHECKING:
    from sympy import Basic, Expr, Rational, Set

MAX_FORM = 100
"""Characters; a longer form is a digest."""
DIGITS, GUARD_DIGITS, MAX_WORKING_DIGITS = 50, 20, 1000
"""Of a number that is no fraction: in its form; beyond that, in its value; most to compute it with."""
MAX_DENOMINATOR = 10**12
"""Of a fraction that is recognised by its digits."""

_WORD = re.compile(r"(?!e$)[A-Za-z](?:[A-Za-z '.-]*[A-Za-z])?")
_FONT = re.compile(r"\\(?:text(?:bf|rm|it|sf|normal)?|math(?:bf|rm|it|sf)|mbox)\s*\{([^{}\\]*)\}")
_NUMBER = re.compile(r"(?:\\[ ,;:!]|~|\s|\\q?quad(?![a-zA-Z]))(?:[-${\s~]|\\[ ,;:!$]|\\[dt]?frac|\\sqrt)*[0-9]")
"""After a blank."""


class Form(NamedTuple):
    """`unit` and `name` are what one may leave out: of `x = 34\\text{ cm}` the form is 34, cm, x. "": left out."""

    value: str
    unit: str = ""
    name: str = ""


def text_form(answer: str) -> Form:
    """The form of an answer that cannot be read: its text, without typography. Linear time."""
    return Form(_short(f"text {normalise(answer)}"))


def quick_form(answer: str) -> Form | None:
    """The form, as far as text and integers decide it; None: `form` must read it. Linear time."""
    if letter := _letter(answer):
        return Form(letter)
    value, unit = _quantity(answer)
    integer = as_integer(normalise(value))
    if integer is not None:
        return Form(_fraction_form(Fraction(integer, 100 if unit == PERCENT else 1)), unit)
    if _WORD.fullmatch(value):
        return Form(_short(re.sub(r"[^a-z]", "", value.lower())))
    try:
        check_text(answer)
    except OverLimitError:
        return text_form(answer)
    return None


def form(answer: str) -> Form:
    """The form of any answer. Can hang, and can raise what sympy raises: call it in a grader process only."""
    if quick := quick_form(answer):
        return quick
    value, unit = _quantity(answer)
    try:
        tree = (list_readings(value, read) or [read(rf"\frac{{{value}}}{{100}}" if unit == PERCENT else value)])[0]
        found, name = _named(tree)
    except ValueError:  # it cannot be read, is over the size limits, or is of a kind that has no form
        return text_form(answer)
    return Form(_short(found), unit, _short(name))


def load_grader(variant: str) -> Grader:
    """A loader as those of `pyrl.reward.tasks`: of the item (answer, "") it makes a verdict for `form_of`."""
    for answer in (r"\frac{1}{2}", r"2\sqrt{2}", "(x+1)^2", "[1,2)", "x>1"):  # warms up, as the math grader's does
        form(answer)
    return _grade


def form_of(extracted: str | None) -> Form | None:
    """From a verdict of this grader; None: the answer could not be read in time, or its grader died."""
    return None if extracted is None else Form(*json.loads(extracted))


def _grade(answer: str, _: str) -> RawVerdict:
    return "right", EQUAL, json.dumps(form(answer), ensure_ascii=False)


def _short(text: str) -> str:
    return text if len(text) <= MAX_FORM else hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _quantity(answer: str) -> tuple[str, str]:
    """(value, unit)"""
    value, unit = split_unit(value_text(answer))
    in_font = _FONT.fullmatch(value)
    return in_font[1].strip() if in_font else value, _short(unit or "")


def _fraction_form(value: Fraction) -> str:
    if max(abs(value.numerator), value.denominator) < 10**MAX_FORM:
        return str(value)
    return _digest(f"{value.numerator:x}/{value.denominator:x}")  # decimal digits of the longest ones would take long


def _letter(answer: str) -> str | None:
    """Of a multiple choice, alone or before a number."""
    found = split_choice(answer)
    return found[0].lower() if found and (not found[1].strip() or _NUMBER.match(found[1])) else None


def _named(tree: Basic) -> tuple[str, str]:
    """(form, name): of `x = 3` those of 3 and x, of `f(x) = x^2` and `x > 1` too."""
    from latex2sympy2_extended import is_expr_of_only_symbols
    from sympy import And, Eq, FiniteSet
    from sympy.core.relational import Relational

    if isinstance(tree, And) and all(isinstance(part, Eq) for part in tree.args):
        chain = tree._unsorted_args  # of math-verify's And: a = b = 3
        tree = Eq(chain[0].lhs, chain[-1].rhs, evaluate=False)
    if isinstance(tree, Eq) and not tree.lhs.free_symbols:  # 3 = x, 5 + 29 = 34
        tree = Eq(tree.rhs, tree.lhs, evaluate=False) if is_expr_of_only_symbols(tree.rhs) else tree
    if isinstance(tree, Eq) and (is_expr_of_only_symbols(tree.lhs) or not tree.free_symbols):
        return _form(tree.rhs), _name(tree.lhs) if tree.lhs.free_symbols else ""
    if isinstance(tree, FiniteSet) and all(isinstance(e, Eq) and is_expr_of_only_symbols(e.lhs) for e in tree.args):
        names = {_name(e.lhs) for e in tree.args}
        if len(names) == 1:  # x = 1, x = 2
            return _form(FiniteSet(*(e.rhs for e in tree.args), evaluate=False)), names.pop()
    if isinstance(tree, Relational | And) and not isinstance(tree, Eq) and len(tree.free_symbols) == 1:
        try:
            return _form(_exact(tree).as_set()), _name(*tree.free_symbols)
        except NotImplementedError:  # sympy cannot solve it
            return _form(tree), ""
    return _form(tree), ""


def _name(tree: Basic) -> str:
    return str(tree).replace(" ", "")


def _form(tree: Basic) -> str:
    """Raises ValueError: a kind of object that has no form here."""
    from sympy import And, Expr, FiniteSet, Interval, MatrixBase, Or, Set, Tuple
    from sympy.core.relational import Relational

    if isinstance(tree, FiniteSet | And | Or):
        parts = sorted({_form(part) for part in tree.args})
        return parts[0] if len(parts) == 1 else f"{type(tree).__name__}({'; '.join(parts)})"
    if isinstance(tree, Interval):
        left = "(" if tree.left_open or tree.start.is_infinite else "["
        right = ")" if tree.right_open or tree.end.is_infinite else "]"
        return f"{left}{_form(tree.start)}; {_form(tree.end)}{right}"
    if isinstance(tree, Tuple):
        return f"({'; '.join(map(_form, tree))})"
    if isinstance(tree, MatrixBase):
        return f"{tree.shape}({'; '.join(map(_form, tree.flat()))})"
    if isinstance(tree, Set):
        return _set_form(tree)
    if isinstance(tree, Relational):
        return _relation_form(tree)
    if isinstance(tree, Expr):
        return _term_form(tree)
    raise ValueError(f"{type(tree).__name__} has no form")


def _set_form(tree: Set) -> str:
    from sympy import Complement, EmptySet, Intersection, Interval, Reals, Union, oo

    if tree == Reals:
        return _form(Interval(-oo, oo))
    if isinstance(tree, Union | Intersection | Complement):
        evaluated = _exact(tree)
        if isinstance(evaluated, Union):
            return f"Union({'; '.join(sorted(map(_form, evaluated.args)))})"
        if not isinstance(evaluated, Intersection | Complement):
            return _form(evaluated)
    elif tree is EmptySet or not tree.args:
        return str(tree)
    raise ValueError(f"{type(tree).__name__} has no form")


def _relation_form(tree: Any) -> str:
    """`lhs - rhs` up to a factor, which is positive for an inequality."""
    from sympy import Eq, GreaterThan, Ne, StrictGreaterThan

    sides = (tree.rhs, tree.lhs) if isinstance(tree, GreaterThan | StrictGreaterThan) else (tree.lhs, tree.rhs)
    values = _at_points(sides[0] - sides[1])
    scale = values[0] if isinstance(tree, Eq | Ne) else abs(values[0])
    if not scale:
        raise ValueError("a relation that says nothing")
    kind = {Eq: "=", Ne: "!="}.get(type(tree), "<" if "Strict" in type(tree).__name__ else "<=")
    return f"{kind} {_digest(*(_number_form(value / scale) for value in values))}"


def _term_form(tree: Expr) -> str:
    """Of a term that is the same number everywhere, as `x / x`, that number."""
    if not tree.free_symbols:
        return _number_form(tree)
    values = [_number_form(value) for value in _at_points(tree)]
    return values[0] if len(set(values)) == 1 else f"term {_digest(*values)}"


def _at_points(tree: Expr) -> list[Expr]:
    """The term with fractions in place of its symbols, and of each `f(x)`.

    Near 1 and 5000 with both signs, so that |x - 5| is not 5 - x, and with unlike signs for unlike letters, so that
    |x| + |y| is not |x + y|.
    """
    from sympy import Symbol
    from sympy.core.function import AppliedUndef

    tree = _exact(tree).xreplace({f: Symbol(_name(f)) for f in tree.atoms(AppliedUndef)})
    places = {symbol: _places(symbol.name) for symbol in tree.free_symbols}
    return [tree.xreplace({symbol: found[i] for symbol, found in places.items()}) for i in range(6)]


def _places(name: str) -> list[Rational]:
    from sympy import Rational

    digest, letter = hashlib.sha256(name.encode()).digest(), ord(name[0])
    near = 1 + Rational(int.from_bytes(digest[:2], "big"), 65537)
    far = 5000 * (1 + Rational(int.from_bytes(digest[2:4], "big"), 65537))
    return [near, -near, far, -far, *(-far if letter & bit else far for bit in (1, 2))]


def _exact(tree: Any) -> Any:
    """Evaluated, with decimals as the fractions that they are."""
    from sympy import Float, Rational

    return tree.xreplace({x: Rational(str(x)) for x in tree.atoms(Float)}).doit()


def _number_form(tree: Expr) -> str:
    """The fraction that it is, also if its digits alone show that, as of `\\sqrt{3+2\\sqrt2}-\\sqrt2`; or 50 digits."""
    tree = _exact(tree)
    if tree.is_Rational:
        return _fraction_form(Fraction(int(tree.p), int(tree.q)))
    if tree.is_infinite and tree.is_extended_real:
        return str(tree)
    if not tree.is_number or tree.is_infinite or tree.is_finite is False:
        raise ValueError("not one number")
    real, imaginary = tree.evalf(DIGITS + GUARD_DIGITS, maxn=MAX_WORKING_DIGITS).as_real_imag()
    parts = [_digits(part) for part in (real, imaginary)]
    return parts[0] if parts[1] == "0" else f"{parts[0]} + {parts[1]} i"


def _digits(value: Expr) -> str:
    import mpmath
    from sympy import Float

    if not value.is_Float and not value.is_Rational:
        raise ValueError("its digits could not be computed")
    if not value.is_Float:
        return str(value)
    if value._prec < mpmath.libmp.dps_to_prec(DIGITS):  # fewer digits are known: it is 0, or nearly so
        if abs(value) < Float(10) ** -DIGITS:
            return "0"
        raise ValueError("its digits could not be computed")
    if abs(value) < 10**GUARD_DIGITS:  # else the digits known end before the point
        exact = Fraction(*map(int, mpmath.libmp.to_rational(value._mpf_)))
        near = exact.limit_denominator(MAX_DENOMINATOR)
        if near and abs(exact - near) < min(abs(exact), 1) * Fraction(1, 10**DIGITS):
            return str(near)
    return str(Float(value, DIGITS))


def _digest(*parts: str) -> str:
    return hashlib.sha256("; ".join(parts).encode()).hexdigest()[:32]
