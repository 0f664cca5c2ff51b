r"""Kinds of answers that were once graded wrong: the pairs of `grader_pairs.jsonl`, and relatives of each kind."""

# ruff: noqa: RUF001 - full-width signs are what one kind is about

import json
from pathlib import Path

import pytest

from pyrl.reward import RewardPool

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "grader_pairs.jsonl").read_text().splitlines()]

RIGHT = {
    "small numbers": [
        (r"2\cdot 10^{-20}", r"\frac{2}{10^{20}}"), (r"\frac{2006}{2006!}", r"\frac{1}{2005!}"),
        (r"\frac{2^{2005}}{3\cdot2^{2006}}", r"\frac16"),
        (r"\sqrt{2}\cdot10^{-20}", r"\frac{2}{\sqrt{2}}\cdot10^{-20}"),
        (r"10^{-30}x", r"\frac{x}{10^{30}}"), (r"\{10^{-20}, 1\}", r"\{1, \frac{1}{10^{20}}\}"),
        (r"(10^{-20}, 1)", r"(\frac{1}{10^{20}}, 1)"), ("0.00000002", r"2\cdot10^{-8}"),
        (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2"), (r"\sqrt{0.25}", "0.5"), ("0.5", r"\sqrt{\frac14}"),
        (r"\frac13", "0.333333"), ("0.003333", r"\frac{1}{300}"),
    ],
    "units": [
        (r"42\text{ cm}", "42"), (r"42\text{ marbles}", "42"), ("42 years", "42"), (r"42\text{ (dollars)}", "42"),
        (r"42\text{ square units}", "42"), (r"42\text{ miles per hour}", "42"), (r"3\text{ hundred}", "300"),
        ("5 square cm", r"5\text{ cm}^2"), (r"42\mathrm{ kg}", "42"), (r"42\text{ students}", r"42\text{ student}"),
    ],
    "equations": [
        ("2+3=5", "5"), ("x=2+3=5", "5"), (r"\frac{22}{7}=3.14", "3.14"), ("5=x", "x=5"), ("5=x", "5"),
        ("x=5", "5=x"),
        (r"\frac12=0.5", "0.5"), ("m+n=7", "7"), ("5 = AB", "5"), (r"3 = 3.0", "3"),
    ],
    "ratios": [("3:20", "3:20"), ("6:40", "3:20.0"), (r"3 : 2", "3:2"), (r"\frac32", "3:2")],
    "bases": [
        ("{11111001110_8}", "{11111001110_8}"), ("{101_2}", "101_{2}"), ("101", "{101_2}"), ("101_{2}", "{101_2}"),
    ],
    "or and and": [
        (r"1\text{ or }3", r"3\text{ or }1"), (r"x=1\text{ or }x=3", r"\{1,3\}"), ("1 or 3", "1, 3"),
        ("1 and 3", "3,1"),
        (r"x<1\text{ or }x>3", r"(-\infty,1)\cup(3,\infty)"),
        (r"(-\infty,1)\text{ or }(3,\infty)", r"(-\infty,1)\cup(3,\infty)"),
        (r"[0,1]\text{ or }[2,3]", r"[0,1]\cup[2,3]"), (r"(1,2)\text{ and }(3,4)", r"(3,4),(1,2)"),
        (r"(1,2)\text{ and }(3,4)", r"\{(3,4),(1,2)\}"), (r"1, 2 \text{ or } 3", "3,2,1"),
        (r"1,000 \text{ or } 2,000", r"\{1000,2000\}"), (r"x>1\text{ and }x<3", "(1,3)"),
        (r"\frac12\text{ OR }2", r"2, 0.5"),
    ],
    "complex numbers": [
        ("i^2", "-1"), ("i^3", "-i"), (r"\frac{1}{1+i}", r"\frac{1-i}{2}"), (r"e^{i\pi}", "-1"), (r"(1+i)^2", "2i"),
        ("|3+4i|", "5"), (r"\mathrm{i}^2", "-1"), (r"2\mathrm{i}+1", "1+2i"), ("4i+3", "3+4i"),
        (r"\sqrt{-4}", "2i"), (r"\cos\frac{\pi}{3}+i\sin\frac{\pi}{3}", r"e^{i\pi/3}"), (r"\{i,-i\}", r"\pm i"),
        ("2i+3j", "3j+2i"), (r"(a+bi)(a-bi)", "a^2+b^2"),
        (r"\sum_{i=1}^{3} i", "6"),
    ],
    "real roots": [
        (r"\sqrt[3]{-8}", "-2"), ("(-8)^{1/3}", "-2"), (r"\sqrt[5]{-32}", "-2"), (r"(-8)^{2/3}", "4"),
        (r"\sqrt[3]{-\frac18}", r"-\frac12"), (r"-\sqrt[3]{-27}", "3"), (r"1+\sqrt[3]{-2}", r"1-\sqrt[3]{2}"),
    ],
    "typography": [
        ("1.2e3", "1200"), ("1E-3", "0.001"), ("2.5e+2", "250"), (r"\mathrm{e}^2", "e^2"), (r"3\mathrm{e}", "3e"),
        (r"4\!2", "42"), (r"1,\!000", "1000"), ("４２", "42"), ("（1，2）", "(1,2)"), ("４２．５", "42.5"),
        ("4{2}", "42"),
        ("{4}{2}", "42"), (r"-1{2}3", "-123"),
    ],
    "terms": [
        (r"\sqrt{1/n}", r"1/\sqrt n"), (r"\sqrt{\frac{1}{2n}}", r"\frac{1}{\sqrt{2n}}"), (r"\sqrt{x}\sqrt{x}", "x"),
        (r"\sqrt{x^2}", "|x|"), ("0.5x", r"\frac{x}{2}"), (r"2^{n+1}", r"2\cdot 2^n"), (r"n!\cdot(n+1)", "(n+1)!"),
        (r"\sin 2x", r"2\sin x\cos x"), (r"\frac{x^2-1}{x-1}", "x+1"), (r"\ln(e^x)", "x"), ("|x-50|", "|50-x|"),
    ],
    "products": [("(2)(3)", "6"), ("-(-1)(11)", "11"), (r"(2)\left(3\right)(4)", "24"), ("(x+1)(2)", "2x+2")],
    "prose": [
        (r"\text{Area}=5", "5"), (r"\text{Area of the triangle} = 5", "5"), (r"\approx 3.14", "3.14"),
        ("答案为42", "42"),
        (r"\text{So the answer is }\frac12", "0.5"), ("The sum is 42", "42"),
        (r"\text{The area is }5\text{ cm}^2", "5"),
        (r"42\text{ in total}", "42"), (r"\text{Answer: } 42", "42"), (r"\text{42 apples}", "42"), ("42元", "42"),
        (r"\text{The answer is 42}", "42"),
    ],
    "choices": [
        ("(D) 7", "7"), ("(D) 7", "D"), ("D: 7", "7"), ("D. 7", "7"), ("D) 7", "7"),
        (r"\text{(D)}\ 7", r"\text{(D) }7"),
        ("D", r"\text{(D) }7"), ("7", r"\text{(D) }7"), (r"\textbf{(D)}\ \frac12", "0.5"), ("(D) -7", "-7"),
        ("(D) 7", "D: 7"), ("7.0", "(D) 7"),
    ],
    "sentences": [
        (r"\text{There is no solution.}", r"\text{There is no solution}"),
        (r"\text{no real solutions}", "no real solutions"),
        (r"\text{All of the above}", r"\textbf{all of the above}"),
    ],
}  # fmt: skip

WRONG = {
    "small numbers": [
        (r"2\cdot10^{-20}", "0"), (r"1+10^{-30}", "1"), ("1", r"1+\frac{1}{10^{40}}"), ("0.00000002", "0.00000003"),
        (r"\sqrt{2}+10^{-50}", r"\sqrt{2}"), (r"\frac{\pi}{10^{20}}", r"\frac{e}{10^{20}}"),
        (r"2\cdot10^{-20}x", r"3\cdot10^{-20}x"), (r"\{2\cdot10^{-20}\}", r"\{3\cdot10^{-20}\}"),
        (r"(10^{-20}, 1)", r"(2\cdot10^{-20}, 1)"), (r"[0, 10^{-20}]", r"[0, 10^{-21}]"),
        ("0.0000001", r"\frac{1}{3000000}"),
        (r"\begin{pmatrix}10^{-20}\\1\end{pmatrix}", r"\begin{pmatrix}10^{-21}\\1\end{pmatrix}"),
        ("10^{20}+1", "10^{20}"),
        ("0.00003", r"\frac{1}{30000}"), ("0.15+10^{-20}", "0.15"), ("0.15", r"\frac{15000001}{100000000}"),
        (r"0.5", r"\frac12+10^{-20}"), ("0.15", r"\sqrt{0.0225}+10^{-20}"),
    ],
    "units": [
        (r"42\text{ lakh}", "42"), (r"42\text{ halves}", "42"), (r"42\text{ (false)}", "42"),
        (r"42\text{ is wrong}", "42"),
        (r"42\text{ pairs}", "42"), ("42 dozen", "42"), (r"42\mathrm{ dozen}", "42"), (r"42\text{ or so}", "42"),
        (r"42\text{ times ten}", "42"), (r"42\text{ below}", "42"), (r"42\text{ factorial}", r"42\text{ cm}"),
        (r"42\text{ to the fourth}", "42"), (r"42\text{ k dollars}", "42"), (r"42(dozen)", "42"),
        ("42 plus one", "42"),
        (r"42\mathrm{k}", "42"), (r"42\text{ gross}", "42"), (r"\text{42 dozen}", "42"),
        (r"42\text{ nonsense}", "42"),
        ("42打", "42"), (r"\pi\text{ dozen}", r"\pi"), (r"x\text{ dozen}", "x"),
        (r"\sqrt{x}\text{ or more}", r"\sqrt{x}"),
    ],
    "equations": [
        ("7=8", "8"), ("x=7=8", "8"), (r"\frac12=0.6", "0.6"), ("1+1=3", "x=3"), (r"\sqrt{2}=2", "2"), ("5=6=x", "6"),
        ("5=x", "x=6"), ("5 = 4", "4"), (r"\pi=3", "3"), ("x=y=3", "x"),
    ],
    "ratios": [("12:30", r"\frac{2}{5}"), ("3:2", "1.5"), ("12:30", "6:15"), ("3:4", "3:5"), ("1:2", "0.5")],
    "bases": [
        ("{11111001110_9}", "{11111001110_8}"), ("{101_2}", "{101_3}"), ("101_2", "{101_3}"), ("{101_2}", "101_3"),
        ("{101_2}", "{100_2}"),
    ],
    "or and and": [
        (r"1\text{ or }3", r"1\text{ or }2"), (r"x=1\text{ or }x=3", r"x=2\text{ or }x=3"),
        (r"1\text{ OR }3", r"2\text{ or }3"),
        (r"x=2 \text{ OR } x=3", r"x=1\text{ or }x=3"), (r"x<0\text{ or }x>3", "x>3"), ("5 or 6", "5"),
        ("6 or 5", "5"),
        (r"5\text{ and }6", "6"), (r"(1,2)\text{ and }(3,4)", "(3,4)"),
        (r"(1,2)\text{ and }(3,4)", r"\{(1,2),(4,3)\}"),
        (r"(-\infty,1)\text{ or }(4,\infty)", r"(-\infty,1)\cup(3,\infty)"), (r"x>1\text{ or }x<3", "(1,3)"),
        (r"1,\text{ or }3", "1"), (r"n=1\lor n=3", "n=3"), (r"1\text{ or }2\text{ or }3", "1,3"),
    ],
    "complex numbers": [
        ("i^2", "1"), ("i", "-i"), (r"\frac{1}{1+i}", r"\frac{1+i}{2}"),
        (r"e^{i\pi/4}", r"\frac{\sqrt2}{2}-\frac{\sqrt2}{2}i"),
        ("|3+4i|", "7"), ("3+4i", "3-4i"), ("2i", "2"), ("2i+3j", "2i-3j"), ("i^2+j", "j-1"),
        (r"(a+bi)(a-bi)", "a^2-b^2"), (r"\{i,-i\}", r"\{1,-1\}"), ("3+4i", "5"),
    ],
    "real roots": [
        (r"\sqrt[3]{-8}", "2"), (r"\sqrt[3]{-2}", r"\sqrt[3]{2}"), (r"\sqrt{-4}", "-2"), (r"\sqrt[4]{-16}", "-2"),
        (r"\sqrt{-4}", "2"), (r"(-8)^{2/3}", "-4"),
    ],
    "typography": [
        ("1.2e3", "1.2"), ("1e2", "e"), ("1.2e4", "1200"), (r"\mathrm{e}", "1"), (r"4\!2", "8"), (r"4\,2", "42"),
        ("4 2", "42"),
        ("４３", "42"), ("4{2}", "8"), (r"\frac1{2}", "12"), ("4^{2}", "42"), ("x_{4}{2}", "42"), (r"2\mathrm{e}", "2"),
    ],
    "terms": [
        (r"\sqrt{n}", r"1/\sqrt n"), (r"\sqrt{x^2}", "x"), (r"\frac{1}{\sqrt{n}}", r"-\frac{1}{\sqrt{n}}"),
        ("|x-50|", "50-x"),
        ("2^{n+1}", "2^n"), ("n!", "(n+1)!"), ("x^2", "x^2+10^{-30}"), ("a-b", "b-a"), ("(-1)^n", "1"), ("|x|", "x"),
        (r"\sqrt{(x-20)^2}", "x-20"), (r"\sqrt{(x-20)^2}", "20-x"),
    ],
    "products": [("(2)(3)", "5"), ("-(-1)(11)", "10"), ("(2)(3)(4)", "9")],
    "prose": [
        (r"\text{not }42", "42"), (r"\text{The answer is not }42", "42"), (r"\text{The answer is minus }42", "42"),
        (r"\text{more than }42", "42"), (r"\text{The answer is about }42", "42"), (r"\text{not}=42", "42"),
        (r"\approx 3.1", "3.14"),
        (r"\text{The sum is }42", "43"), (r"\text{The square root of }42", "42"), ("答案不是42", "42"),
        (r"42\text{ is not the answer}", "42"), (r"\text{The answer is below }42", "42"),
        (r"\text{half of }42", "42"),
        (r"\text{42 dozen}", "42"), (r"\text{5 or 6}", "5"), (r"\text{The opposite is }42", "42"),
    ],
    "choices": [
        ("(D) 7", "C"), ("(D) 8", "(D) 7"), ("(D) 7", r"\text{(C) }7"), ("(D) 7", "8"), ("D: 7", "C"),
        ("D: 8", "7"), ("(A) + 7", "7"),
        ("A - 7", "7"),
        ("C", r"\text{(D) }7"), ("8", r"\text{(D) }7"), ("(A),(B)", "A"), ("A or B", "A"), ("(A)(7)", "8"),
        ("D = 8", "7"),
    ],
    "sentences": [
        (r"\text{There is no solution}", "5"), ("5", r"\text{There is no such number}"),
        (r"\text{the answer is unknown}", "42"),
        (r"\text{none of these}", r"\frac12"), (r"\frac12", r"\text{none of these}"),
        ("no real solutions exist", "x+1"),
        (r"\text{There are two solutions}", r"\text{There is no solution}"),
    ],
}  # fmt: skip

HUGE = [
    ("10^{10^9}", "34"), ("9!!!!", "34"), (r"\frac{1}{9!!!!}", r"\frac{1}{34}"), ("10^{-10^9}", "0"),
    ("1e9999999", "34"),
    ("2^{3^{4^{5}}}x", "x"), ("(x+1)^{9999}-(x+1)^{9998}", "x"), ("e^{e^{e^{e^x}}}", "x"),
    (r"\sqrt{10^{19000}+1}", "10^{9500}"),
    ("i^{10^9}", "i"), (r"\sqrt[3]{-10^{10^9}}", "34"), ("100000!!", "34"), (r"{\sqrt2}^{30000}", r"2^{15000}+1"),
]  # fmt: skip


@pytest.fixture(scope="module")
def pool():
    with RewardPool("math", 1, 30.0) as pool:
        yield pool


def judged_unlike(pool, outcome, pairs):
    verdicts = pool.grade([(rf"So \boxed{{{answer}}}.", truth) for answer, truth in pairs])
    return [(pair, v) for pair, v in zip(pairs, verdicts, strict=True) if v.outcome != outcome]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair['response'][-40:]} for {pair['ground_truth']}")
def test_pairs_that_came_out_wrong_once(pool, pair):
    (verdict,) = pool.grade([(pair["response"], pair["ground_truth"])])
    assert verdict.outcome == ("right" if pair["right"] else "wrong"), verdict


@pytest.mark.parametrize("kind", RIGHT)
def test_what_is_right(pool, kind):
    assert judged_unlike(pool, "right", RIGHT[kind]) == []


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong(pool, kind):
    assert judged_unlike(pool, "wrong", WRONG[kind]) == []


def test_huge_values_are_wrong_in_bounded_time(pool):
    assert judged_unlike(pool, "wrong", HUGE) == []
