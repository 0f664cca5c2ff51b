// The row kernels for x86-64 with AVX2 and FMA; called only where the processor has both.
#define PYRL_ROWS_ISA avx2
#include "logprob_entropy/rows.inl"
