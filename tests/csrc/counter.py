"""Defects planted in the kernel of the counter."""

from __future__ import annotations

from tests.csrc.harness import Mutation, Program

_CU = "counter/counter.cu"

PROGRAM = Program(
    name="counter",
    source=_CU,
    mutations=(Mutation("one thread too many", "if (t < count)", "if (t <= count)", _CU),),
)
