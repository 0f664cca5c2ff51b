// Launches of the CUDA kernels of selection.h. Each returns CUDA's error, 0 for none.
#pragma once

#include <cstdint>

#include "selection/key.h"

namespace pyrl::selection {

inline constexpr int kMaxBlocks = 1056;  // 8 on each of an H100's 132 multiprocessors; each adds its bins to the others'

// Pointers are to the device; state 0 before the first round, counts [kCounts] before each. max_blocks: fewer, with more
// tokens each, give the same.
int launch_histogram(
    const Tokens& tokens,
    const Query& query,
    int round,
    const State* state,
    int32_t* counts,
    void* stream,
    int max_blocks = kMaxBlocks);

int launch_advance(const int32_t* counts, bool by_covariance, int round, const Ratio& ratio, State* state, void* stream);

// marks [T]
int launch_mark(
    const Tokens& tokens,
    const Query& query,
    const State* state,
    bool* marks,
    void* stream,
    int max_blocks = kMaxBlocks);

}  // namespace pyrl::selection
