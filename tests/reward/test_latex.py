"""LaTeX is read in two stages, and as math-verify's own entry reads it."""

from __future__ import annotations

import pytest
from math_verify.parser import parse_latex_cached
from sympy import srepr

from pyrl.reward.answers import extract_answer, strip_wrappers
from pyrl.reward.latex import _to_sympy
from tests.reward.labelled import read_labelled

PAIRS = [pair for pair in read_labelled() if pair.category not in ("hostile", "very_long")]  # those may hang


def read(reader, text: str) -> str:
    try:
        return srepr(reader(text))
    except Exception as error:  # the LaTeX parser raises bare Exception
        return f"raises {type(error).__name__}"


@pytest.mark.parametrize("category", sorted({pair.category for pair in PAIRS}))
def test_two_stages_give_math_verifys_expression(category: str) -> None:
    of_category = [pair for pair in PAIRS if pair.category == category]
    texts = {strip_wrappers(text) for p in of_category for text in (p.truth, extract_answer(p.response) or "")}
    for text in sorted(texts):
        assert read(_to_sympy, text) == read(parse_latex_cached, text), text
