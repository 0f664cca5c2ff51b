"""Defects planted in the kernels of logprob_entropy."""

from __future__ import annotations

from tests.csrc.harness import Mutation, Program

_CU = "logprob_entropy/logprob_entropy.cu"
_ROW = """  const auto* x = static_cast<const Storage<E>*>(problem.logits) + t * problem.row_stride;
  const int64_t y"""

PROGRAM = Program(
    name="logprob_entropy",
    source=_CU,
    mutations=(
        Mutation("missing barrier", "  device::block_barrier();\n", "", _CU, "thread"),
        Mutation("tail one too long", "span.tail + thread < span.end", "span.tail + thread <= span.end", _CU),
        Mutation("wrong lanes", "shuffle_xor(sums.s, lanes)", "shuffle_xor(sums.s, lanes / 2)", _CU),
        Mutation("padding read", "thread_sums<E>(x, problem.valid", "thread_sums<E>(x, problem.width", _CU),
        Mutation("int32 index of a row", _ROW, _ROW.replace("t * problem.row_stride", "int(t * problem.row_stride)"),
                 _CU),
        Mutation("missing loads count as 0", "raw[u] = {{E::kNothing, E::kNothing, E::kNothing, E::kNothing}}",
                 "raw[u] = {}", _CU),
        Mutation("row of the entropy alone skipped", "(g_l == 0 && g_h == 0)", "(g_l == 0)", _CU),
        Mutation("R not centred again", "r = f * (r + d * s);", "r = f * r;", _CU),
    ),
)  # fmt: skip
