// The row kernels for the instruction set every machine of this architecture has.
#define PYRL_ROWS_ISA generic
#include "logprob_entropy/rows.inl"
