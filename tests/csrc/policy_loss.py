"""Defects planted in the kernels of policy_loss."""

from __future__ import annotations

from tests.csrc.harness import Mutation, Program

_CU = "policy_loss/policy_loss.cu"
_TOKEN = "policy_loss/token.h"

PROGRAM = Program(
    name="policy_loss",
    source=_CU,
    mutations=(
        Mutation("tail one too long", "if (t >= tokens.count) break;", "if (t > tokens.count) break;", _CU),
        Mutation("sign of nothing", "distance < kMinLogRatio ? 0.0 : std::copysign", "std::copysign", _TOKEN),
    ),
)  # fmt: skip
