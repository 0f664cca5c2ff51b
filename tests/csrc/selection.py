"""Defects planted in the kernels of selection."""

from __future__ import annotations

from tests.csrc.harness import Mutation, Program

_CU = "selection/selection.cu"
_KEY = "selection/key.h"

PROGRAM = Program(
    name="selection",
    source=_CU,
    mutations=(
        Mutation("bins used before they are 0", "block_valid[0] = 0;\n  device::block_barrier();",
                 "block_valid[0] = 0;", _CU, "thread"),
        Mutation("nobody settles a digit that no bin reaches", " || lane == device::kWarp - 1", "", _CU),
        Mutation("bins past the last", "while (bin < kBinsPerLane - 1 && before", "while (before", _CU),
        Mutation("zeros of two signs differ", "if (bits == 0x80000000u) return 0x7FFFFFFFu;", "", _KEY),
        Mutation("ties by position", "mix(query.seed, static_cast<uint64_t>(*uid)) <= state.mix", "true", _KEY),
    ),
)  # fmt: skip
