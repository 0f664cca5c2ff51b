"""The paper's rules, by what their description says of them."""

import pytest

from pyrl.reward import RewardPool


@pytest.fixture(scope="module")
def pool():
    with RewardPool("math:paper", 1, 30.0) as pool:
        yield pool


RIGHT = [
    (r"\boxed{34}", "34"), (r"\fbox{34}", "34"), (r"\boxed{12} \boxed{34}", r"\boxed{34}"),
    (r"\boxed{\dfrac12}", r"\frac{1}{2}"), (r"\boxed{0.5}", r"\frac{1}{2}"), (r"\boxed{34\text{ cm}}", "34"),  # mathd
    (r"\boxed{k=34}", "34"), (r"\boxed{1/2}", r"\frac{1}{2}"), (r"\boxed{\sqrt2}", r"\sqrt{2}"),
    (r"\boxed{2x+2}", "2(x+1)"), (r"\boxed{(x+1, 3)}", "(1+x,3)"), (r"\boxed{\frac{\sqrt{2}}{2}}", r"1/\sqrt{2}"),
    (r"\boxed{1,000}", "1000"), (r"\boxed{3 million}", "3*10^6"),
    (r"\boxed{\{2,1\}}", r"\{1,2\}"), (r"\boxed{\begin{bmatrix}1&2\end{bmatrix}}", r"\begin{pmatrix}1&2\end{pmatrix}"),
]  # fmt: skip
WRONG = [
    ("Answer: 34", "34"), ("34", "34"), (r"\boxed{34", "34"), (r"\boxed{12} \fbox{34}", "34"), (r"\boxed{35}", "34"),
    (r"\boxed{}", "34"), (r"\boxed 42 so {7}", "7"), (r"\boxed{7} or \boxed 8", "7"), (r"\boxed {7}", "7"),
    (r"\boxed{(2,1)}", "(1,2)"), (r"\boxed{x+2}", "x+1"),
    (r"\boxed{9^{9^{9^9}}}", "34"), (r"\boxed{__import__('os').system('true')}", "34"), (r"\boxed{id(1)}", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("pairs", "outcome"), [(RIGHT, "right"), (WRONG, "wrong"), ([(r"\boxed{1}", "")], "unjudged")])
def test_the_table(pool, pairs, outcome):
    verdicts = pool.grade(pairs)
    assert [(p, v) for p, v in zip(pairs, verdicts, strict=True) if v.outcome != outcome] == []
