// Launches of the CUDA kernels of token_covariance.h. Each returns CUDA's error, 0 for none. Pointers are to the device.
#pragma once

#include <cstdint>

#include "token_covariance/tokens.h"

namespace pyrl::covariance {

inline constexpr int kMaxBlocks = 1056;  // 8 on each of an H100's 132 multiprocessors: each divides the sums once

// Adds to sums [kSums].
int launch_sums(const Tokens& tokens, int64_t* sums, void* stream);

// result [T]. max_blocks: fewer, with more tokens each, give the same.
int launch_covariance(
    const Tokens& tokens, const int64_t* sums, float* result, void* stream, int max_blocks = kMaxBlocks);

}  // namespace pyrl::covariance
