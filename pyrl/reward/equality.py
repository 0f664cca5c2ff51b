"""Equality of two expressions as math-verify reads them: numbers, terms, sets, tuples, intervals and matrices by their
parts, everything else by math-verify. Import it in a grader process only: it needs sympy, and sympy can hang.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyrl.reward.numeric import FLOAT_DECIMALS, exact, numbers_equal, shown_decimals, terms_equal


def equal(wanted: Any, got: Any) -> bool:
    """Whether `got` answers for the ground truth `wanted`. Raises what sympy raises."""
    from math_verify.grader import is_assignment_relation, is_equation, take_first_relation, take_last_relation

    wanted, got = _name_first(wanted), _name_first(got)
    if is_equation(got) and not _is_true(got):
        return False
    if is_equation(got) and not is_equation(wanted):
        got = take_last_relation(got).rhs
    elif is_assignment_relation(wanted) and not is_equation(got):
        wanted = take_last_relation(wanted).rhs
    elif is_assignment_relation(wanted) and is_assignment_relation(got):
        if take_first_relation(wanted).lhs == take_first_relation(got).lhs:
            wanted, got = take_last_relation(wanted).rhs, take_last_relation(got).rhs
    decided = _decide(wanted, got)
    return _verify(wanted, got) if decided is None else decided


def _verify(wanted: Any, got: Any) -> bool:
    from math_verify import verify

    return verify(
        wanted,
        got,
        float_rounding=FLOAT_DECIMALS,
        allow_set_relation_comp=True,
        timeout_seconds=None,
        raise_on_error=True,
    )


def _name_first(tree: Any) -> Any:
    """`x = 5` for `5 = x`."""
    from latex2sympy2_extended import is_expr_of_only_symbols
    from sympy import Eq

    if isinstance(tree, Eq) and not tree.lhs.free_symbols and is_expr_of_only_symbols(tree.rhs):
        return Eq(tree.rhs, tree.lhs, evaluate=False)
    return tree


def _is_true(equation: Any) -> bool:
    """No two sides of it are unlike numbers; a decimal may be rounded to the digits that it shows (22/7 = 3.14)."""
    from sympy import Eq, Expr, Float, Rational

    parts = [equation] if isinstance(equation, Eq) else equation._unsorted_args
    for part in parts:
        sides = part.lhs, part.rhs
        if not all(isinstance(side, Expr) and not side.free_symbols for side in sides):
            continue
        if numbers_equal(*sides) is not False:
            continue
        shown = [side for side in sides if isinstance(side, Float)]
        if not shown:
            return False
        digits = shown_decimals(shown[0])
        if abs((exact(sides[0]) - exact(sides[1])).evalf(30)) > Rational(1, 2 * 10 ** max(0, digits)):
            return False
    return True


def _decide(wanted: Any, got: Any) -> bool | None:
    """None: math-verify must."""
    from sympy import Expr, FiniteSet, Interval, MatrixBase, Tuple

    if isinstance(wanted, FiniteSet) and isinstance(got, FiniteSet):
        return _same_elements(wanted.args, got.args)
    if isinstance(wanted, Interval) and isinstance(got, Interval):
        flags = (wanted.left_open, wanted.right_open) == (got.left_open, got.right_open)
        return flags and equal(wanted.start, got.start) and equal(wanted.end, got.end)
    if isinstance(wanted, Interval | Tuple) and isinstance(got, Interval | Tuple):
        pair = [_as_tuple(tree) for tree in (wanted, got)]
        return None if None in pair else _same_in_order(*pair)
    if isinstance(wanted, MatrixBase) and isinstance(got, MatrixBase):
        return wanted.shape == got.shape and _same_in_order(wanted.flat(), got.flat())
    if isinstance(wanted, Expr) and isinstance(got, Expr):
        return _decide_terms(wanted, got)
    return None


def _as_tuple(tree: Any) -> Sequence[Any] | None:
    """The reader takes (1, 2) for an open interval."""
    from sympy import Tuple

    if isinstance(tree, Tuple):
        return tree.args
    return (tree.start, tree.end) if tree.left_open and tree.right_open else None


def _same_in_order(wanted: Sequence[Any], got: Sequence[Any]) -> bool:
    return len(wanted) == len(got) and all(equal(a, b) for a, b in zip(wanted, got, strict=True))


def _same_elements(wanted: Sequence[Any], got: Sequence[Any]) -> bool:
    """Each has its own match; the order that sympy gives to elements says nothing."""
    left = list(got)
    for element in wanted:
        match = next((place for place, other in enumerate(left) if equal(element, other)), None)
        if match is None:
            return False
        del left[match]
    return not left


def _decide_terms(wanted: Any, got: Any) -> bool | None:
    from sympy import UnevaluatedExpr

    if _may_be_word(wanted) and _may_be_word(got):
        return None
    if wanted.has(UnevaluatedExpr) or got.has(UnevaluatedExpr):  # per cent
        return None
    if wanted == got:
        return wanted.is_finite is not False or None
    return terms_equal(wanted, got) if wanted.free_symbols or got.free_symbols else numbers_equal(wanted, got)


def _may_be_word(tree: Any) -> bool:
    """The reader takes `abc` for a product, and e for Euler's number."""
    from sympy import E, Mul, Symbol

    factors = tree.args if isinstance(tree, Mul) else (tree,)
    return all(isinstance(factor, Symbol) or factor == E for factor in factors)
