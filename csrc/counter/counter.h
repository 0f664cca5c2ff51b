// Counter-based randomness: what is drawn for a token depends on (seed, token uid) alone, never on rank or order.
//
//   mix64(x)      SplitMix64's output function (Steele, Lea, Flood 2014, with Stafford's variant 13 constants)
//   mix(seed, u)  mix64(mix64(u + golden) ^ mix64(seed + other)), arithmetic modulo 2^64; with one constant for both it
//                 would be symmetric, and seed 1 would give uid 2 what seed 2 gives uid 1
//
// For a fixed seed, mix is a bijection of u: distinct uids never tie. pyrl/ops/counter.py is the same in Python and
// derives the seed of a purpose from (run seed, step, mini-batch, purpose). The functions themselves: mix.h.
#pragma once

#include <cstdint>

#include <torch/csrc/stable/tensor.h>

namespace pyrl {

// uids int64 [T] -> int64 [T], the bits of mix(seed, uid).
torch::stable::Tensor mix_uids_cpu(const torch::stable::Tensor& uids, int64_t seed);
torch::stable::Tensor mix_uids_cuda(const torch::stable::Tensor& uids, int64_t seed);

}  // namespace pyrl
