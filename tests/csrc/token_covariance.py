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
        Mutation("carry left out", "return low + ((below - static_cast<int32_t>(below)) >> 32);", "return low;", _SUM),
    ),
)  # fmt: skip
