import itertools
import json
import operator
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrl.reward import RewardPool
from pyrl.reward.countdown import MAX_CHARACTERS, grade

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def truth(numbers, target, **options):
    return json.dumps({"numbers": numbers, "target": target, **options})


def trees(numbers):
    """Every full expression tree over the numbers in this order, as nested tuples."""
    if len(numbers) == 1:
        yield numbers[0]
        return
    for cut in range(1, len(numbers)):
        for left, right in itertools.product(trees(numbers[:cut]), trees(numbers[cut:])):
            for symbol in OPERATIONS:
                yield symbol, left, right


def value_of(tree):
    """Fraction, or None for a division by zero."""
    if isinstance(tree, int):
        return Fraction(tree)
    left, right = value_of(tree[1]), value_of(tree[2])
    if left is None or right is None or (tree[0] == "/" and right == 0):
        return None
    return OPERATIONS[tree[0]](left, right)


def text_of(tree):
    return str(tree) if isinstance(tree, int) else f"({text_of(tree[1])}{tree[0]}{text_of(tree[2])})"


@st.composite
def expression_trees(draw, numbers):
    if len(numbers) == 1:
        return numbers[0]
    cut = draw(st.integers(1, len(numbers) - 1))
    symbol = draw(st.sampled_from("+-*/"))
    return symbol, draw(expression_trees(numbers[:cut])), draw(expression_trees(numbers[cut:]))


@st.composite
def puzzles(draw):
    numbers = draw(st.lists(st.integers(0, 12), min_size=1, max_size=5))
    return draw(st.permutations(numbers)), draw(expression_trees(numbers))


@given(puzzles(), st.integers(-3, 3))
@settings(max_examples=300, deadline=None)
def test_a_tree_is_right_exactly_when_its_value_is_the_target(puzzle, offset):
    numbers, tree = puzzle
    value = value_of(tree)
    target = offset if value is None or value.denominator != 1 else int(value) + offset
    outcome, _, extracted = grade(f" {text_of(tree)}\n", truth(list(numbers), target, operators="+-*/"))
    assert outcome == ("right" if value == target else "wrong")
    assert extracted == text_of(tree)


FEW_DIGITS = st.lists(st.integers(0, 3), min_size=1, max_size=5)


@given(FEW_DIGITS, FEW_DIGITS, st.data())
@settings(max_examples=300, deadline=None)
def test_count_says_how_many_of_the_numbers_are_used(given_numbers, used, data):
    count = data.draw(st.integers(1, len(given_numbers)))
    outcome, reason, _ = grade("+".join(map(str, used)), truth(given_numbers, sum(used), count=count))
    choices = {tuple(sorted(c)) for c in itertools.combinations(given_numbers, count)}
    assert (outcome == "right") == (tuple(sorted(used)) in choices)
    assert outcome == "right" or "numbers" in reason


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.lists(st.integers(0, 9), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_the_numbers_must_be_exactly_those_given(given_numbers, used):
    total = sum(used)
    outcome, reason, _ = grade("+".join(map(str, used)), truth(given_numbers, total))
    assert (outcome == "right") == (sorted(given_numbers) == sorted(used))
    assert outcome == "right" or "numbers" in reason


def test_every_solution_of_one_puzzle_is_found_and_nothing_else():
    """Brute force over all 4 numbers' trees, evaluated with fractions."""
    right = 0
    for order in set(itertools.permutations([1, 3, 4, 6])):
        for tree in trees(order):
            got = grade(text_of(tree), truth([1, 3, 4, 6], 24, operators="+-*/"))[0]
            assert got == ("right" if value_of(tree) == 24 else "wrong"), text_of(tree)
            right += got == "right"
    assert right == 1  # 6/(1-3/4): the puzzle's only solution


@given(st.text(alphabet="0123456789+-*/() ", max_size=20))
@settings(max_examples=500, deadline=None)
def test_whatever_is_right_evaluates_to_the_target(text):
    """Strings that happen to parse agree with Python's own evaluation."""
    outcome, _, _ = grade(text, truth([1, 2], 3, operators="+-*/"))
    if outcome == "right":
        assert eval(text) == 3


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        ("3*7+5", "right"),
        ("5 + 7 * 3", "right"),
        ("(7*3)+5", "right"),
        ("((((((5+7*3))))))", "right"),
        ("3*7+5=26", "wrong"),
        ("26", "wrong"),
        ("3*7+5 ok", "wrong"),
        ("3*7+5\n3*7+5", "wrong"),
        ("3(7)+5", "wrong"),
        ("3**7+5", "wrong"),
        ("7//3+5", "wrong"),
        ("7/3+5", "wrong"),
        ("+3*7+5", "wrong"),
        ("--3*7+5", "wrong"),
        ("3*7+5+0", "wrong"),
        ("03*7+5", "wrong"),
        ("3*7+5.0", "wrong"),
        ("3_*7+5", "wrong"),
        ("\u0663*7+5", "wrong"),
        ("(3*7+5", "wrong"),
        ("3*7+", "wrong"),
        ("()", "wrong"),
        ("(3,7,5)", "wrong"),
        ("", "wrong"),
        (" \n", "wrong"),
        ("__import__('os').system('true')", "wrong"),
        ("9**9**9**9", "wrong"),
        ("(" * 100 + "3*7+5" + ")" * 100, None),
        ("(" * 5000, "wrong"),
        ("3*7+5" + " " * 5000, "right"),
        ("3*7+5+" + "0+" * 5000 + "0", "wrong"),
        ("\x00", "wrong"),
        ("\ud800", "wrong"),
    ],
)
def test_single_responses(response, outcome):
    got = grade(response, truth([3, 5, 7], 26))[0]
    assert got == outcome if outcome else got in ("right", "wrong")


def test_the_task_may_forbid_parentheses_and_operators():
    assert grade("(3*7)+5", truth([3, 5, 7], 26, parentheses=False))[0] == "wrong"
    assert grade("3*7+5", truth([3, 5, 7], 26, parentheses=False))[0] == "right"
    assert grade("3*7+5", truth([3, 5, 7], 26, operators="+-"))[0] == "wrong"
    assert grade("8/3*3", truth([3, 3, 8], 8, operators="*/"))[0] == "right"
    assert grade("8/(3-3)", truth([3, 3, 8], 8, operators="-/")) == (
        "wrong",
        "unreadable_answer: division by zero",
        "8/(3-3)",
    )


def test_the_length_limit_is_exact():
    fits = "1+" * (MAX_CHARACTERS // 2 - 1) + "10"
    numbers = [1] * (MAX_CHARACTERS // 2 - 1) + [10]
    assert len(fits) == MAX_CHARACTERS
    assert grade(fits, truth(numbers, sum(numbers)))[0] == "right"
    assert grade(fits + "0", truth([*numbers[:-1], 100], sum(numbers) + 90))[1].startswith("over_limit")


@pytest.mark.parametrize(
    "ground_truth",
    [
        "",
        "26",
        "[3, 5, 7]",
        "{",
        '{"numbers": [3], "target": 3.5}',
        '{"numbers": [3], "target": "3"}',
        '{"numbers": [], "target": 3}',
        '{"numbers": [true], "target": 1}',
        '{"numbers": [-3], "target": 3}',
        '{"target": 3}',
        '{"numbers": [3], "target": 3, "operators": "^"}',
        '{"numbers": [3], "target": 3, "parentheses": 1}',
        '{"numbers": [3], "target": 3, "count": 0}',
        '{"numbers": [3], "target": 3, "count": 2}',
        '{"numbers": [3], "target": 3, "count": true}',
        '{"numbers": [3], "target": NaN}',
    ],
)
def test_an_unreadable_ground_truth_is_unjudged(ground_truth):
    outcome, reason, _ = grade("3", ground_truth)
    assert outcome == "unjudged" and reason.startswith("unreadable_ground_truth")


def test_a_step_of_512_gradings_is_a_small_part_of_a_second():
    """About 40 ms on two idle cores; the limit leaves room for a busy machine, best of five."""
    items = [("3*7+5", truth([3, 5, 7], 26 + i % 2)) for i in range(512)]
    with RewardPool("countdown", 1, 5.0) as pool:
        seconds = []
        for _ in range(5):
            start = time.monotonic()
            verdicts = pool.grade(items)
            seconds.append(time.monotonic() - start)
    assert [v.outcome for v in verdicts] == ["right", "wrong"] * 256
    assert min(seconds) < 0.25, seconds
