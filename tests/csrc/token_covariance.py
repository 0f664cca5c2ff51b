"""Defects planted in the kernels of token_covariance."""

from __future__ import annotations

from tests.csrc.harness import Mutation, Program

_CU = "token_covariance/token_covariance.cu"
_SUM = "token_covariance/exact_sum.h"

PROGRAM = Program(
    name="token_covariance",
    source=_CU,
    mutations=(
        Mutation("missing barrier before the means", "  device::block_barrier();\n  const Means means",
                 "  const Means means", _CU, "thread"),
        Mutation("what the quotient's second word has below is forgotten",
                 "sticky = sticky || remainder != 0 || (quotient[1] << zeros) != 0;",
                 "sticky = sticky || remainder != 0;", _SUM),
        Mutation("remainder forgotten", "sticky = sticky || remainder != 0 || (quotient[1] << zeros) != 0;",
                 "sticky = sticky || (quotient[1] << zeros) != 0;", _SUM),
        Mutation("digits that are not divided forgotten", "sticky = sticky || digit != 0;", "", _SUM),
        Mutation("ties away from zero", "(rest == 0x400 && (sticky || ((m >> 11) & 1)))", "rest == 0x400", _SUM),
        Mutation("carry left out", "return low + ((below - static_cast<int32_t>(below)) >> 32);", "return low;", _SUM),
    ),
)  # fmt: skip
