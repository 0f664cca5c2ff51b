"""Refusing answers such as `9^{9^{9^9}}` before anything evaluates them.

Two gates: on the text, before it is parsed, and on the parsed but unevaluated sympy tree. What passes both can still
be slow; the wall limit of the grader process is the last resort.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sympy import Basic

MAX_CHARACTERS = 1000
MAX_NESTING = 24
"""Brackets of any kind, one inside the other."""
MAX_ROUND_NESTING = 10
"""Round and square brackets, one inside the other: the LaTeX parser looks ahead through all of them at every level."""
MAX_DIGITS = 400
"""Of one literal."""
MAX_NODES = 2000
MAX_VALUE_DIGITS = 20_000.0
"""Decimal digits of any numeric subexpression, or of its reciprocal."""
MAX_SYMBOLIC_EXPONENT = 10_000.0

_LONG_NUMBER = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
_EAGER = re.compile(r"\\[dt]?binom(?![a-zA-Z])|\\(?:operatorname\{)?(?:gcd|lcm)(?![a-zA-Z])|\\choose(?![a-zA-Z])")
_BIG_OPERAND = re.compile(r"[0-9]{5}|[\^!]")


class OverLimitError(ValueError):
    """The expression is larger than what is graded; the text says in which respect."""


def check_text(text: str) -> None:
    """Raises OverLimitError."""
    if len(text) > MAX_CHARACTERS:
        raise OverLimitError(f"{len(text)} characters, at most {MAX_CHARACTERS}")
    if _LONG_NUMBER.search(text):
        raise OverLimitError(f"a number of more than {MAX_DIGITS} digits")
    depth = round_depth = 0
    for character in text:
        opened = (character in "([{") - (character in ")]}")
        depth += opened
        round_depth += opened if character in "([])" else 0
        if depth > MAX_NESTING or round_depth > MAX_ROUND_NESTING:
            raise OverLimitError(f"brackets nested more than {MAX_NESTING} deep, or {MAX_ROUND_NESTING} round ones")
    if _EAGER.search(text) and _BIG_OPERAND.search(text):  # the parser computes these while it reads
        raise OverLimitError("a binomial, gcd or lcm of large operands")


def check_tree(expression: Basic) -> None:
    """Raises OverLimitError if evaluating the tree could make a huge number. Evaluates nothing itself."""
    nodes, waiting = 0, [expression]
    while waiting:
        nodes += 1
        if nodes > MAX_NODES:
            raise OverLimitError(f"more than {MAX_NODES} nodes")
        waiting.extend(_args(waiting.pop()))
    value_digits(expression)


def _args(node: object) -> tuple:
    import sympy

    if isinstance(node, sympy.MatrixBase):
        return tuple(node.flat())
    return tuple(getattr(node, "args", ()))


def value_digits(node: object) -> float:
    """An upper bound of log10 of the value (or of its reciprocal, whichever is larger); symbols count as 1 digit."""
    import sympy

    if isinstance(node, sympy.Rational):
        return math.log10(max(abs(node.p), node.q, 1))
    if isinstance(node, sympy.Float):
        return abs(math.log10(2) * (node._mpf_[2] + node._mpf_[3])) if node else 0.0
    args = _args(node)
    if not args:
        return 1.0
    if isinstance(node, sympy.Pow):
        return _power_digits(*args)
    sizes = [value_digits(arg) for arg in args]
    if isinstance(node, sympy.Mul):
        return _bounded(sum(sizes))
    if isinstance(node, sympy.Add):
        return _bounded(max(sizes) + math.log10(len(sizes)))
    return _function_digits(node, max(sizes))


def _power_digits(base: object, exponent: object) -> float:
    import sympy

    size = value_digits(base)
    exponent_digits = value_digits(exponent)
    if exponent_digits > 9:
        raise OverLimitError("an exponent of more than 9 digits")
    times = abs(float(exponent)) if isinstance(exponent, sympy.Rational) else 10.0**exponent_digits
    if getattr(base, "free_symbols", None) and isinstance(exponent, sympy.Integer) and times > MAX_SYMBOLIC_EXPONENT:
        raise OverLimitError(f"an exponent above {MAX_SYMBOLIC_EXPONENT:.0f}")
    return _bounded(size * times)


def _function_digits(node: object, size: float) -> float:
    import sympy
    from sympy.functions.combinatorial.factorials import CombinatorialFunction

    if isinstance(node, CombinatorialFunction | sympy.gamma):
        return _bounded(10.0 ** min(size, 9.0) * max(size, 1.0))
    if isinstance(node, sympy.exp | sympy.sinh | sympy.cosh):
        return _bounded(10.0 ** min(size, 9.0) / 2)
    if isinstance(node, sympy.MatPow) and value_digits(node.exp) > 3:
        raise OverLimitError("a matrix power above 1000")
    if isinstance(node, sympy.Sum | sympy.Product) and size > 4:
        raise OverLimitError("a sum or product with a bound above 10^4")
    return size


def _bounded(digits: float) -> float:
    if digits > MAX_VALUE_DIGITS:
        raise OverLimitError(f"a value of more than {MAX_VALUE_DIGITS:.0f} digits")
    return digits
