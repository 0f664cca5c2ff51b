r"""Forms of answers: equal for equal answers, other for others, as far as the grader's labelled pairs can tell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrl.reward import RewardPool
from pyrl.reward.answers import extract_answer
from pyrl.reward.forms import Form, form, form_of, quick_form, text_form
from pyrl.reward.tasks import FORM_LOADERS
from tests.reward.labelled import read_labelled
from tests.reward.test_math import HANGS, WRONG

EQUAL = [
    ["0.25", ".25", "1/4", r"\frac14", r"\dfrac{1}{4}", r"25\%", r"25\text{ percent}", "25 %", "x=0.25", "0.25=x",
     "2^{-2}", "$0.250$.", r"\{0.25\}", r"\frac{\sqrt{2}}{\sqrt{32}}", r"\frac{\sqrt{3+2\sqrt2}-\sqrt2}{4}",
     r"\mathrm{0.25}", r"0.25\text{ cm}", r"\frac{\sin^2 x+\cos^2 x}{4}", r"\frac{x}{4x}"],
    ["-3", "\N{MINUS SIGN}3", "-3.0", "n = -3", r"-3\text{ cm}^2", r"-\frac{6}{2}", r"\log_2 \frac18", "2-5=-3"],
    [r"5\cdot10^{-20}", "5e-20", "5E-20"], ["i^2+2", "1"],
    [r"\{(1,2),(3,4)\}", r"(3,4) \text{ and } (1,2)"], [r"\sqrt[3]{-2}", r"-\sqrt[3]{2}"],
    ["77", r"\text{Area}=77", r"\text{The answer is }77", r"\approx 77"],
    ["1000", "1,000", "1{,}000", "10^3", r"1\times 10^3", "1 thousand"],
    [r"2\sqrt{2}", r"\sqrt{8}", r"2\sqrt2", r"\frac{4}{\sqrt{2}}", "8^{1/2}"],
    [r"\frac{\pi}{2}", r"\pi/2", "0.5\N{GREEK SMALL LETTER PI}", r"\arcsin 1"],
    [r"\{1,2\}", r"\{2,1\}", "1, 2", "2,1", r"2\text{ or }1", "x=1, x=2", r"\{1,\frac{4}{2}\}"],
    ["(1,2)", r"\left( 1 , \frac42 \right)", "1<x<2", r"x\in(1,2)"],
    ["[1,2)", r"1\le x<2", r"2>x\ge 1"],
    ["(1,2,3)", "(1, 2.0, 3)"],
    [r"(-\infty,0)\cup(0,\infty)", r"(0,\infty)\cup(-\infty,0)", r"\mathbb{R}\setminus\{0\}", r"x\ne0"],
    [r"\mathbb{R}", r"(-\infty,\infty)"],
    ["(x+1)^2", "x^2+2x+1", "1+x(x+2)", "y=(x+1)^2", "f(x)=x^2+2x+1"],
    ["2^{n+1}", r"2\cdot 2^n"], ["n!", "n(n-1)!"], [r"\sum_{k=1}^n k", r"\frac{n^2+n}{2}", r"\binom{n+1}{2}"],
    ["4x+3y=12", "3y+4x=12", "8x+6y=24", "12=3y+4x"],
    ["4x+3y<12", "12>3y+4x", "8x+6y<24"],
    ["x=1,y=2", "y=2,x=1"],
    [r"\text{Evelyn}", "Evelyn", "evelyn", r"\textbf{Evelyn}"],
    ["B", "(B)", r"\text{B}", r"\textbf{(B)}\ 25", r"\text{(B) }", r"(B)\ \frac{1}{2}"],
    [r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&\frac42\\3&4\end{bmatrix}"],
]  # fmt: skip
"""Each of one form, which no other list has."""

DIFFERENT = [
    "2", "-2", "(2,1)", "[1,2]", "(1,2]", r"\{1,2,3\}", "(1,2,4)", "x^2+x+1", "(x-1)^2", "4x+3y=13", "12<4x+3y",
    r"4x+3y\le12", "x=2,y=1", "1/2004!", "1/2006!", "2e-20", r"3\cdot10^{-20}",
    r"\pi\cdot10^{90}", r"2\pi\cdot10^{90}", r"\pi\cdot10^{-200}", r"2\pi\cdot10^{-200}",
    "10^{300}", "10^{300}+1", "0.333333", r"\frac13", "3.14159265", r"\pi",
    "x^{9999}", "x^{9998}", "x", "y", "1/x", "|x|", "-x", "0", r"\infty", r"-\infty", r"\emptyset",
    "|x-5|", "5-x", "|x|+|y|", "|x+y|", "|x-y|", "x-y", r"\lfloor x\rfloor", r"\lfloor\sqrt{x}\rfloor",
    "34 or more", "34 or less", "A", r"(A)\text{ and }(B)", r"(A)\text{ and }(C)", r"\text{Bob}",
    "9^{9^{9^9}}", "9^{9^{9^8}}", "1/0", "\x00", "(" * 12 + "2" + ")" * 12, "1+" * 600 + "1", r"\frac{1}{" * 30,
    r"\begin{pmatrix}1&2\\3&5\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}",
]  # fmt: skip


@pytest.fixture(scope="module")
def pool():
    with RewardPool("math", 1, 30.0, loader=FORM_LOADERS["math"]) as pool:
        yield pool


def forms_of(pool: RewardPool, answers: Sequence[str]) -> list[Form]:
    return [form_of(verdict.extracted) for verdict in pool.grade([(answer, "") for answer in answers])]


def agree(one: Form, other: Form) -> bool:
    """With a unit or a name left out."""
    return one.value == other.value and all("" in pair or pair[0] == pair[1] for pair in zip(one, other, strict=True))


def test_equal_answers_have_one_form_and_others_have_others(pool):
    values = [{f.value for f in forms_of(pool, answers)} for answers in EQUAL]
    assert [(answers, found) for answers, found in zip(EQUAL, values, strict=True) if len(found) > 1] == []
    named = [("".join(found), answers[0]) for found, answers in zip(values, EQUAL, strict=True)]
    named += [(f.value, answer) for f, answer in zip(forms_of(pool, DIFFERENT), DIFFERENT, strict=True)]
    assert [(a, b) for (x, a), (y, b) in combinations(named, 2) if x == y] == []


def test_no_pair_that_is_labelled_wrong_is_one_answer(pool):
    """Those labelled right agree, but for decimals that are rounded, and per cent and degrees beside plain numbers."""
    pairs = [(extract_answer(pair.response), pair.truth, pair.label) for pair in read_labelled()]
    pairs += [(answer, truth, "wrong") for answer, truth in WRONG]
    pairs = [pair for pair in pairs if pair[0] not in (None, HANGS)]
    answers = sorted({text for pair in pairs for text in pair[:2]})
    forms = dict(zip(answers, forms_of(pool, answers), strict=True))
    assert all(isinstance(f, Form) and max(map(len, f)) <= 100 for f in forms.values())
    assert [p for p in pairs if p[2] == "wrong" and agree(forms[p[0]], forms[p[1]])] == []
    right = [p for p in pairs if p[2] == "right"]
    split = [p for p in right if not agree(forms[p[0]], forms[p[1]])]
    assert len(right) > 200
    assert [p for p in split if not re.search(r"[0-9]\.[0-9]{6}|%|percent|\^\\circ", p[0] + p[1])] == []


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6), st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_spellings_of_a_fraction(top, bottom, places):
    exact = Fraction(top, bottom)
    for answer in (rf"\frac{{{top}}}{{{bottom}}}", f"{top}/{bottom}", rf"\dfrac{{{3 * top}}}{{{3 * bottom}}}"):
        assert form(answer) == Form(str(exact))
    decimal = f"{Decimal(top).scaleb(-places):f}"
    assert form(decimal) == Form(str(Fraction(top, 10**places)))
    assert form(rf"{decimal}\%") == Form(str(Fraction(top, 100 * 10**places)), "%")


def test_units_and_names_stand_beside_the_value(pool):
    answers = [r"34\text{ cm}", "x = 34", r"x=34\text{ meters}", r"90^\circ", r"\$5", "4210_7", "f(x)=3", "50\\%"]
    assert forms_of(pool, answers) == [
        ("34", "cm", ""), ("34", "", "x"), ("34", "m", "x"), ("90", "degree", ""), ("5", "dollar", ""),
        ("4210", "base 7", ""), ("3", "", "f(x)"), ("1/2", "%", ""),
    ]  # fmt: skip


@given(st.text(max_size=1200))
@settings(deadline=None)
def test_text_alone_gives_short_forms_to_any_string(answer):
    for found in (text_form(answer), quick_form(answer)):
        assert found is None or max(map(len, found)) <= 100


def test_a_hostile_answer_costs_its_limit_alone(pool):
    """What cannot be read in time has no form; the others have."""
    before = ["1/2", "9^{9^{9^9}}", "(" * 200 + "1" + ")" * 200]
    verdicts = pool.grade([(answer, "") for answer in [*before, HANGS, "0.5"]], timeout_seconds=5.0)
    assert [form_of(verdict.extracted) for verdict in verdicts] == [
        Form("1/2"), *map(text_form, before[1:]), None, Form("1/2"),
    ]  # fmt: skip
    assert verdicts[3].reason.startswith("timeout")
