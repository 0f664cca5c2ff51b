// Launches of the CUDA kernels of logprob_entropy.h; fp64 logits have none. Each returns CUDA's error, 0 for none. Pointers are to the device.
//
// One block of 128 threads per row, 8 blocks on a multiprocessor: while some rows begin or end (label, temperature,
// reduction, one barrier), the others keep the memory busy. A thread has four 16-byte loads in flight, a multiprocessor
// 1024 x 64 B = 64 KB; at 3.0 TB/s and 1 us, 132 multiprocessors need 23 KB each. Columns before the first 16-byte
// boundary of a row and after the last go one to a thread.
//
// Budget for a bf16 logit on an H100 (132 x 128 lanes at 1.755 GHz, 3.0 TB/s: 19.8 instructions and 2.5 exponentials in
// the time of 2 bytes), counted, not measured:
//   stats     2 bytes; unpack 1, maximum 0.5, subtract, scale, bound, exp2, 2 sums: 7.5 instructions, 1 exponential
//   backward  4 bytes; unpack 1, subtract, scale, bound, exp2, 2 for the gradient, pack 0.5: 7.5; 2 fewer without entropy
// both plus the loop and, per 32 logits of a thread, about 10 to bring its sums to a new maximum. fp64 is used once a row.
// tests/native/test_cuda_code.py counts the machine code: the whole of the loop for 32 bf16 logits is 301 to 312 (stats),
// 284 to 285 (backward) and 220 to 221 instructions (without entropy), over sm_80, sm_90 and sm_100.
#pragma once

#include <cstdint>

#include "logprob_entropy/rows.h"

namespace pyrl::rows {

// stats [T, 4]. A label outside [0, vocab_size) but for kIgnore, or a temperature outside [1e-6, 1e6], gives S = NaN: the
// merge reports that row.
int launch_stats(const Problem& problem, int64_t vocab_size, int64_t tokens, float* stats, void* stream);

// stats [shards, T, 4]
struct Shards {
  const float* stats;
  int64_t shards, tokens;
  const double* temperature;
  int64_t temperature_stride;
};

// combined [T, 4]
int launch_combine(const Shards& shards, float* combined, void* stream);

struct Merge {
  const int64_t* labels;
  float* logprobs;
  float* entropy;
  double* lse;
  uint64_t* bad_row;  // all bits set before; becomes the smallest bad row
};
int launch_merge(const Shards& shards, const Merge& merge, void* stream);

int launch_backward(const Problem& problem, const Gradient& gradient, int64_t tokens, void* stream);

}  // namespace pyrl::rows
