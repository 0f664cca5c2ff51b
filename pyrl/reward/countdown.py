"""The countdown task: combine given numbers, each used at most once, into a target.

Ground truth: JSON `{"numbers": [3, 5, 7], "target": 26}`, with the optional keys `"count"` (how many of the numbers an
answer uses; default all), `"operators"` (default `"+-*"`; `/` is exact division) and `"parentheses"` (default true).
A response is one arithmetic expression and nothing else; there are no signs, so `-3+5` is not well formed.
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from pyrl.reward.tasks import (
    DIFFERENT,
    EQUAL,
    UNREADABLE_ANSWER,
    UNREADABLE_GROUND_TRUTH,
    Grader,
    RawVerdict,
    refuse_length,
)

MAX_CHARACTERS = 256
"""Longest expression that is read; it also bounds the parser's depth."""

_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_DIGITS = frozenset("0123456789")


class Puzzle(NamedTuple):
    """A ground truth."""

    numbers: tuple[int, ...]
    target: int
    count: int
    """Numbers that an answer uses."""
    operators: frozenset[str]
    parentheses: bool


class ExpressionError(ValueError):
    """The response is not an expression of the task's grammar."""


@lru_cache(maxsize=4096)
def read_puzzle(ground_truth: str) -> Puzzle:
    """Raises ValueError naming the field at fault."""
    tree = json.loads(ground_truth)
    if not isinstance(tree, dict):
        raise ValueError(f"ground truth is {type(tree).__name__}, not an object with numbers and target")
    numbers, target, operators = tree.get("numbers"), tree.get("target"), tree.get("operators", "+-*")
    parentheses = tree.get("parentheses", True)
    if not isinstance(numbers, list) or not numbers or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"numbers {numbers!r}: want a list of non-negative integers")
    if type(target) is not int:
        raise ValueError(f"target {target!r}: want an integer")
    count = tree.get("count", len(numbers))
    if type(count) is not int or not 1 <= count <= len(numbers):
        raise ValueError(f"count {count!r}: want an integer from 1 to {len(numbers)}, the number of numbers")
    if not isinstance(operators, str) or not operators or not set(operators) <= set("+-*/"):
        raise ValueError(f"operators {operators!r}: want a selection of '+-*/'")
    if not isinstance(parentheses, bool):
        raise ValueError(f"parentheses {parentheses!r}: want true or false")
    return Puzzle(tuple(numbers), target, count, frozenset(operators), parentheses)


def evaluate(expression: str, puzzle: Puzzle) -> tuple[Fraction, list[int]]:
    """The exact value and the numbers used. Raises ExpressionError."""
    allowed = _DIGITS | puzzle.operators | (frozenset("() ") if puzzle.parentheses else frozenset(" "))
    if not set(expression) <= allowed:
        raise ExpressionError(f"character {min(set(expression) - allowed)!r} is not allowed")
    try:
        tree = ast.parse(expression, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:  # the parser reports deep nesting in all three ways
        raise ExpressionError(f"not well formed: {type(error).__name__}") from error
    used: list[int] = []
    value = _evaluate_node(tree, used)
    return value, used


def _evaluate_node(node: ast.expr, used: list[int]) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    operator = _OPERATORS.get(type(node.op)) if isinstance(node, ast.BinOp) else None
    if operator is None:  # calls "3(5)", powers "**", floor division "//", signs
        raise ExpressionError(f"{type(node).__name__} is not allowed")
    left, right = _evaluate_node(node.left, used), _evaluate_node(node.right, used)
    if operator == "/" and right == 0:
        raise ExpressionError("division by zero")
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    return left * right if operator == "*" else left / right


def grade(response: str, ground_truth: str) -> RawVerdict:
    """Right iff the response is an expression over `count` of the numbers, each used once, that equals the target."""
    try:
        puzzle = read_puzzle(ground_truth)
    except ValueError as error:
        return "unjudged", f"{UNREADABLE_GROUND_TRUTH}: {error}", None
    expression = response.strip()
    if (refused := refuse_length(expression, MAX_CHARACTERS)) is not None:
        return refused
    try:
        value, used = evaluate(expression, puzzle)
    except ExpressionError as error:
        return "wrong", f"{UNREADABLE_ANSWER}: {error}", expression
    if len(used) != puzzle.count or Counter(used) - Counter(puzzle.numbers):
        return "wrong", f"{DIFFERENT}: numbers", expression
    return ("right", EQUAL, expression) if value == puzzle.target else ("wrong", f"{DIFFERENT}: value", expression)


def load_grader(variant: str) -> Grader:
    """The loader of `pyrl.reward.tasks`; countdown has no variants."""
    del variant
    return grade
