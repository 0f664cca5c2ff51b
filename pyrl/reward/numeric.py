r"""Equality of numbers and of terms: exact where they are rational, by digits relative to their size otherwise.

math-verify's own comparison chops differences below some 1e-16, whatever the size of the numbers, so that 2e-20 would
be 3e-20. Import it in a grader process only: it needs sympy, and sympy can hang.
"""

from __future__ import annotations

from typing import Any

from pyrl.reward.size_limits import value_digits

FLOAT_DECIMALS = 6
"""Decimals to which a decimal answer must agree with an exact, non-integer ground truth (1/3 ~ 0.333333)."""
FLOAT_RELATIVE = 5e-3
"""And the relative error that it may have: three significant digits, so that 0.000000 is not 1/5040!."""
DIGITS = 400
"""Digits to which a difference is computed that might be zero, beside those that cancel."""
POINT_DIGITS = 60
SAME_DIGITS = 45
"""Of the values of a term at a point: computed, compared."""

_SMALL_POINTS = ((7, 5), (-7, 5), (33, 4), (-33, 4), (9, 8), (-10, 3))
"""Within 10, as `pyrl.reward.size_limits` takes symbols for numbers of one digit."""
_LARGE_POINTS = ((5003, 3), (-5003, 3), (1000003, 7), (-1000003, 7))


def exact(tree: Any) -> Any:
    """With decimals as the fractions that they are; evaluated only where it is rational or holds a sum or integral.

    Evaluating a root factors the number under it, which can take for ever.
    """
    from sympy import Derivative, Integral, Limit, Product, Sum

    tree = _without_floats(tree)
    return tree.doit() if _is_rational(tree) or tree.has(Derivative, Integral, Limit, Product, Sum) else tree


def numbers_equal(wanted: Any, got: Any) -> bool | None:
    """Of two terms without symbols; None: their values cannot be computed, or are no finite numbers."""
    from sympy import Float, Integer

    values = exact(wanted), exact(got)
    rational = all(value.is_Rational for value in values)
    if rational and values[0] == values[1]:
        return True
    if isinstance(wanted, Float) or isinstance(got, Float):
        if any(isinstance(value, Integer) for value in values):
            return bool(rational and values[0] == values[1])  # 34.0 is 34, 33.9999999 is not
        if any(isinstance(tree, Float) and shown_decimals(tree) >= FLOAT_DECIMALS for tree in (wanted, got)):
            return _decimals_agree(*values)
    return False if rational else _is_zero(*values)


def shown_decimals(number: Any) -> int:
    """Of a decimal as the reader keeps it, that is, without the zeros at its end."""
    mantissa, _, exponent = str(number).partition("e")
    return len(mantissa.rstrip("0").partition(".")[2]) - int(exponent or 0)


def _decimals_agree(wanted: Any, got: Any) -> bool | None:
    numbers = [value.evalf(POINT_DIGITS) for value in (wanted, got)]
    if not all(map(_is_value, numbers)):
        return None
    near = numbers[0].round(FLOAT_DECIMALS) == numbers[1].round(FLOAT_DECIMALS)
    return bool(near and abs(numbers[0] - numbers[1]) <= FLOAT_RELATIVE * abs(numbers[0]))


def _is_zero(left: Any, right: Any) -> bool | None:
    """Whether left - right is: none of its digits differs from 0, to `_digits_needed` relative to both."""
    from sympy import Add

    rough = [value.evalf(15) for value in (left, right)]
    if not all(map(_is_value, rough)):
        return None
    if abs(rough[0] - rough[1]) > 1e-9 * max(abs(value) for value in rough):
        return False
    found = Add(left, -right, evaluate=False).evalf(3, maxn=max(map(_digits_needed, (left, right))))
    return not any(part.is_Float and part._prec > 1 and part for part in found.as_real_imag())


def _digits_needed(tree: Any) -> int:
    """More where the tree holds numbers of many digits, as sqrt(10^1000 + 1) does, and all functions are fast."""
    from sympy import Function

    return DIGITS if tree.has(Function) else DIGITS + 2 * int(value_digits(tree))


def _is_value(value: Any) -> bool:
    return all(part.is_Float or part.is_Rational for part in value.as_real_imag())


def _is_rational(tree: Any) -> bool:
    from sympy import Add, Mul, Pow, Rational, binomial, factorial, preorder_traversal

    return all(
        isinstance(node, Rational | Add | Mul | factorial | binomial) or (isinstance(node, Pow) and node.exp.is_integer)
        for node in preorder_traversal(tree)
    )


def terms_equal(wanted: Any, got: Any) -> bool | None:
    """Of two terms with symbols, by their values at points; None: the points do not decide.

    Points where neither has a real value do not count, unless a term has an imaginary unit: sqrt(1/n) is 1/sqrt(n).
    Algebraic terms are compared far out as well, where |x - 50| is not 50 - x; of others with a bend, points show only
    that they differ.
    """
    from sympy import I

    wanted, got = (_without_floats(tree) for tree in (wanted, got))
    if wanted.doit() == got.doit():
        return True
    both = (wanted, got)
    if any(_is_opaque(tree) for tree in both):
        return None
    algebraic = all(_is_algebraic(tree) for tree in both)
    points = _SMALL_POINTS + (_LARGE_POINTS if algebraic else ())
    is_complex = any(tree.has(I) for tree in both)
    agreed = 0
    for index in range(len(points)):
        values = [_at(tree, points, index) for tree in both]
        if None in values or not (is_complex or any(imaginary == 0 for _, imaginary in values)):
            continue
        if not _close(*values):
            return False
        agreed += 1
    return True if agreed >= 2 and (algebraic or not any(_has_bend(tree) for tree in both)) else None


def _without_floats(tree: Any) -> Any:
    from sympy import Float, Rational

    floats = tree.atoms(Float)
    return tree.xreplace({x: Rational(str(x)) for x in floats}) if floats else tree


def _is_opaque(tree: Any) -> bool:
    """Its values cannot be computed, or not in short time."""
    from sympy import Derivative, Integral, Limit, Product, Sum
    from sympy.core.function import AppliedUndef
    from sympy.core.relational import Relational

    return tree.has(AppliedUndef, Derivative, Integral, Limit, Product, Sum, Relational)


def _is_algebraic(tree: Any) -> bool:
    """Sums, products, absolute values and powers with rational exponents."""
    from sympy import Abs, Add, Mul, Pow, preorder_traversal

    return all(
        node.is_Atom
        or isinstance(node, Add | Mul | Abs)
        or (isinstance(node, Pow) and node.exp.is_Rational and abs(node.exp) <= 1000)
        for node in preorder_traversal(tree)
    )


def _has_bend(tree: Any) -> bool:
    """It may be one term here and another there."""
    from sympy import Abs, Max, Min, Mod, Piecewise, Pow, ceiling, floor, sign

    bends = (Abs, Max, Min, Mod, Piecewise, ceiling, floor, sign)
    return tree.has(*bends) or any(
        node.base.free_symbols and not node.exp.is_Integer and not node.exp.free_symbols for node in tree.atoms(Pow)
    )


def _at(tree: Any, points: tuple[tuple[int, int], ...], index: int) -> tuple[Any, Any] | None:
    """(real, imaginary) part of the value with a point for each symbol; None: it has none."""
    from sympy import Rational

    places = {}
    for symbol in tree.free_symbols:
        code = sum(ord(letter) * 31**place for place, letter in enumerate(symbol.name))
        top, bottom = points[(index * (1 + 2 * (code % 2)) + code) % len(points)]
        places[symbol] = Rational(top * 9973, bottom * (9973 + code % 9967))
    value = tree.evalf(POINT_DIGITS, subs=places)
    if not value.is_number or value.is_finite is False or value.has(*_not_numbers()):
        return None
    parts = value.as_real_imag()
    if not all(part.is_Float or part.is_Rational for part in parts):
        return None
    return tuple(0 if part.is_Float and part._prec <= 10 else part for part in parts)


def _not_numbers() -> tuple[Any, ...]:
    from sympy import nan, oo, zoo

    return nan, oo, zoo


def _close(left: tuple[Any, Any], right: tuple[Any, Any]) -> bool:
    from sympy import Float

    size = max(abs(part) for value in (left, right) for part in value)
    return all(abs(a - b) <= Float(10) ** -SAME_DIGITS * size for a, b in zip(left, right, strict=True))
