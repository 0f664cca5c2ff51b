r"""The mathematical grader. One pool judges the whole table, so the LaTeX parser is loaded once."""

import os
import random
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrl.reward import RewardPool, grade_math
from pyrl.reward.math import grade_text
from pyrl.reward.shared import MAX_POOLS, close_shared_pools
from pyrl.reward.size_limits import MAX_CHARACTERS, OverLimitError, check_text, check_tree

HANGS = r"\int_0^1 e^{-x^2}\sin(x^3) dx"  # sympy needs minutes

RIGHT = [
    # integers and decimals
    ("34", "34"), ("034", "34"), ("+34", "34"), ("34.0", "34"), ("34.", "34"), ("1,000", "1000"), ("1{,}000", "1000"),
    (r"1\,000\,000", "1000000"), ("1 000 000", "10^6"), ("\N{MINUS SIGN}3", "-3"), ("$34$", "34"), (r"\(34\)", "34"),
    (r"3.4\times10^1", "34"), ("33+1", "34"), ("5+29=34", "34"), ("x=34", "34"), ("34", r"\boxed{34}"),
    ("34", "$34$."), ("2(3)", "6"),
    # fractions, roots, powers
    ("1/2", r"\frac{1}{2}"), (r"\frac12", "0.5"), (r"\dfrac{1}{2}", r"\frac{1}{2}"), (r"\frac{-1}{2}", r"-\frac12"),
    (r"\frac{2}{4}", r"\frac12"), ("0.333333", r"\frac13"), (r"1\frac12", r"\frac32"), ("1 1/2", "3/2"),
    ("-1 1/2", "-3/2"), (r"\sqrt{8}", r"2\sqrt2"), (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), ("2^{10}", "1024"),
    ("2^10", "1024"), ("2**10", "1024"), (r"\frac{68}{2}", "34"), ("4!", "24"), (r"\binom{5}{2}", "10"),
    (r"\sum_{k=1}^{10} k", "55"),
    # constants and functions
    (r"\frac{\pi}{4}", r"\arctan 1"), ("3.14159265", r"\pi"), ("2\N{GREEK SMALL LETTER PI}", r"2\pi"),
    (r"\log_2 8", "3"), (r"\sin^2 x+\cos^2 x", "1"),
    # algebra
    ("x^2+2x+1", "(x+1)^2"), ("(a+b)(a-b)", "a^2-b^2"), ("ba", "ab"), ("y=2x+1", "2x+1"), ("1<x", "x>1"),
    ("3+4i", "4i+3"), ("4x+3y=12", "3y+4x=12"),
    # sets, tuples, intervals, matrices
    (r"\{2,1\}", r"\{1,2\}"), ("2,1", "1,2"), (r"\pm3", r"\{-3,3\}"), ("( 1 , 2 )", "(1,2)"),
    (r"(3,\pi/2)", r"(3,\frac{\pi}{2})"), ("[1,2)", "[1, 2)"), (r"\left[1,\frac42\right)", "[1,2)"),
    (r"(-\infty,3)\cup(5,\infty)", r"(-\infty, 3) \cup (5, \infty)"),
    (r"(5,\infty)\cup(-\infty,3)", r"(-\infty,3)\cup(5,\infty)"), (r"x\in[1,2]", "[1,2]"),
    (r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    # units and words
    (r"34\text{ cm}", "34"), (r"5\text{ m}^2", "5"), (r"90^\circ", "90"), (r"\$34", "34"), (r"50\%", "50"),
    (r"\text{Evelyn}", "Evelyn"), (r"\text{(B)}", "B"), (r"\mathrm{34}", "34"),
]  # fmt: skip

WRONG = [
    ("35", "34"), ("-34", "34"), ("33.9999999", "34"), ("34.00001", "34"), ("3.4", "34"), ("340", "34"),
    ("34!", "34"), ("0.33", r"\frac13"), (r"\frac13", r"\frac12"), (r"\frac21", r"\frac12"), (r"\sqrt{2}", "1.41"),
    ("3.14", r"\pi"), ("2^{11}", "1024"),
    # hedging
    ("34, 35", "34"), ("34 or 35", "34"), (r"34 \text{ or } 35", "34"), ("34;35", "34"), ("34 35", "34"),
    ("3 31", "34"), (r"\pm 34", "34"),
    ("2(3)", "5"),  # math-verify adds them
    # structure
    ("(2,1)", "(1,2)"), (r"(1,2)", r"\{1,2\}"), (r"\{1,2\}", "(1,2)"), ("[1,2)", "[1,2]"), ("(0,1)", "(0,1]"),
    (r"\{1,2,3\}", r"\{1,2\}"), (r"\begin{pmatrix}1&3\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    ("x<1", "x>1"), ("x^2+x+1", "(x+1)^2"), ("x", "y"), (r"\text{Bob}", r"\text{Evelyn}"), ("no", r"\text{yes}"),
    (r"\ln 2", "2"),
    # hostile and unreadable
    ("9**9**9**9", "34"), ("9^{9^{9^{9}}}", "34"), ("9^{9^{9^9}}", "34"), ("9^9^9^9", "34"), ("(9^9)^{9^9}", "34"),
    ("10^{-10^{10}}", "34"), ("99999999!", "34"), ("9!!!!!", "34"), (r"\binom{1000000}{500000}", "34"),
    (r"\prod_{n=1}^{1000000} n", "34"), ("e^{e^{e^{e^{10}}}}", "34"), ("x^{10000000}", "34"), ("9" * 500, "34"),
    ("1+" * 600 + "1", "34"), ("(" * 200 + "34" + ")" * 200, "34"), (r"\frac{1}{" * 30, "34"),
    ("__import__('os').system('true')", "34"), (r"\frac{1}{0}", "34"), ("nan", "34"), (r"\infty", "34"),
    ("\N{SUPERSCRIPT THREE}4", "34"), ("\u0663\u0664", "34"), ("\x00", "34"), ("\ud800", "34"),
    (r"\undefined{3}", "34"), ("=", "34"),
]  # fmt: skip

UNJUDGED = [
    ("34", ""), ("34", " $ $ "), ("34", r"\frac{1}{"), ("34", "{"), ("34", "1" * (MAX_CHARACTERS + 1)), ("34", "1/0"),
    ("34", "9^{9^{9^9}}"), ("3", "1 2 3"),
]  # fmt: skip


@pytest.fixture(scope="module")
def pool():
    with RewardPool("math", 1, 30.0) as pool:
        yield pool


@pytest.fixture(scope="module", autouse=True)
def no_shared_pool_left():
    yield
    close_shared_pools()


@pytest.mark.parametrize(("pairs", "outcome"), [(RIGHT, "right"), (WRONG, "wrong"), (UNJUDGED, "unjudged")])
def test_the_table(pool, pairs, outcome):
    verdicts = pool.grade([(rf"Thus \boxed{{{answer}}}.", truth) for answer, truth in pairs])
    failed = [(pair, v) for pair, v in zip(pairs, verdicts, strict=True) if v.outcome != outcome]
    assert not failed


def test_equality_does_not_depend_on_what_was_graded_before(pool):
    """sympy and the parser keep caches."""
    pairs = [*RIGHT, *WRONG]
    wanted = ["right"] * len(RIGHT) + ["wrong"] * len(WRONG)
    order = random.Random(0).sample(range(len(pairs)), 60)
    verdicts = pool.grade([(rf"\boxed{{{pairs[i][0]}}}", pairs[i][1]) for i in order])
    assert [v.outcome for v in verdicts] == [wanted[i] for i in order]


@given(st.integers(-(10**6), 10**6), st.integers(-3, 3))
@settings(max_examples=200, deadline=None)
def test_integers_need_no_process(value, offset):
    verdict = grade_text(f"Answer: {value + offset}", str(value))
    assert verdict is not None and verdict[0] == ("wrong" if offset else "right")


def test_reasons_and_extracted_answers():
    assert grade_math("I do not know", "34").reason == "no_answer"
    assert grade_math("I do not know", "34").extracted is None
    assert grade_math(r"\boxed{35}", "34").reason == "different"
    assert grade_math(r"\boxed{35}", "34").extracted == "35"
    assert grade_math(r"\boxed{9**9**9**9}", "34").outcome == "wrong"
    assert grade_math(r"\boxed{9^{9^{9^9}}}", "34").reason.startswith("over_limit")
    assert grade_math(r"\boxed{34}", "").reason.startswith("unreadable_ground_truth")


def test_a_hang_is_unjudged_within_its_limit_and_the_next_answer_is_judged():
    grade_math(r"\boxed{\frac12}", "0.5")  # a running process, so that its start is not measured
    start = time.monotonic()
    verdict = grade_math(rf"\boxed{{{HANGS}}}", "34", timeout=1.0)
    assert verdict.outcome == "unjudged" and verdict.reason.startswith("timeout")
    assert 1.0 <= time.monotonic() - start < 30.0  # 1 s, and the start of another process
    assert grade_math(r"\boxed{\frac12}", "0.5").outcome == "right"


def test_from_many_threads_while_some_hang():
    """More threads than processes; also after the thread that started a process has ended."""
    results = {}

    def work(name):
        hang = name % 4 == 3
        answer, truth = (HANGS, "34") if hang else (rf"\frac{{{name}}}{{7}}", rf"\frac{{{2 * name}}}{{14}}")
        results[name] = grade_math(rf"\boxed{{{answer}}}", truth, timeout=2.0 if hang else 60.0).outcome

    for _ in range(2):
        threads = [threading.Thread(target=work, args=(name,)) for name in range(2 * MAX_POOLS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert results == {n: "unjudged" if n % 4 == 3 else "right" for n in range(2 * MAX_POOLS)}


def test_no_signal_handler_is_touched():
    import signal

    before = signal.getsignal(signal.SIGALRM)
    grade_math(r"\boxed{\frac12}", "0.5")
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@given(st.text(max_size=60), st.text(max_size=20))
@settings(max_examples=40, deadline=None)
def test_no_string_raises(answer, truth):
    assert grade_math(rf"\boxed{{{answer}}}", truth, timeout=20.0).outcome in ("right", "wrong", "unjudged")


@given(st.text(alphabet=r"\{}()[]^_+-*/=<>,;.!%$ 0123456789abfrcxsqt", max_size=30))
@settings(max_examples=60, deadline=None)
def test_no_latex_like_string_raises(answer):
    verdict = grade_math(rf"\boxed{{{answer}}}", r"\frac{355}{113}", timeout=20.0)
    assert verdict.outcome in ("wrong", "unjudged")
    assert not verdict.reason.startswith("unreadable_ground_truth")


@pytest.mark.parametrize("arguments", [(None, "34"), ("34", 34), (b"34", "34")])
def test_what_is_not_a_string_is_a_type_error(arguments):
    with pytest.raises(TypeError, match="want str"):
        grade_math(*arguments)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_a_senseless_timeout_is_refused(timeout):
    with pytest.raises(ValueError, match="timeout"):
        grade_math(r"\boxed{1}", "1", timeout=timeout)


def test_size_limits_of_the_tree():
    import sympy
    from sympy import Pow, factorial

    check_tree(Pow(10, 19_000, evaluate=False))
    check_tree(factorial(5000, evaluate=False))
    check_tree(sympy.Symbol("x") ** 2019 + sympy.pi ** sympy.Rational(1, 3))
    check_tree(sympy.Matrix([[1, 2], [3, 4]]))
    check_tree(sympy.FiniteSet(1, sympy.oo))
    tower = 2
    for _ in range(12):
        tower = 1 + Pow(tower, -1, evaluate=False)  # a continued fraction is deep and small
    check_tree(tower)
    for huge in (
        Pow(10, 21_000, evaluate=False),
        Pow(10, Pow(10, 10, evaluate=False), evaluate=False),
        Pow(sympy.Float("1e300"), 1000, evaluate=False),
        factorial(20_000, evaluate=False),
        factorial(factorial(20, evaluate=False), evaluate=False),
        Pow(sympy.Symbol("x") + 1, 100_000, evaluate=False),
        sympy.Add(*[sympy.Symbol(f"x{i}") for i in range(2100)]),
    ):
        with pytest.raises(OverLimitError):
            check_tree(huge)


@pytest.mark.parametrize("text", ["9" * 401, "(" * 11, "{" * 25, "1" * 1001, r"\binom{10^9}{5}", r"\gcd(123456,2)"])
def test_size_limits_of_the_text(text):
    with pytest.raises(OverLimitError):
        check_text(text)


@pytest.mark.skipif("PYRL_DATA_DIR" not in os.environ, reason="PYRL_DATA_DIR is not set")
def test_every_ground_truth_of_dapo_math_is_its_own_answer(pool):
    import pyarrow.parquet as parquet

    table = parquet.read_table(Path(os.environ["PYRL_DATA_DIR"]) / "DAPO-Math-17k.parquet", columns=["reward_model"])
    truths = [row["ground_truth"] for row in table["reward_model"].to_pylist()]
    sample = random.Random(0).sample(truths, 300)
    verdicts = pool.grade([(rf"We get \boxed{{{truth}}}", truth) for truth in sample])
    assert [(t, v) for t, v in zip(sample, verdicts, strict=True) if v.outcome != "right"] == []
    # written so that text alone does not decide: each must be read by the LaTeX parser
    verdicts = pool.grade([(rf"\boxed{{\frac{{2 \cdot ({truth})}}{{2}}}}", truth) for truth in sample])
    assert [(t, v) for t, v in zip(sample, verdicts, strict=True) if v.outcome != "right"] == []
    verdicts = pool.grade([(rf"\boxed{{{truth} + 1}}", truth) for truth in sample])
    assert [(t, v) for t, v in zip(sample, verdicts, strict=True) if v.outcome != "wrong"] == []
