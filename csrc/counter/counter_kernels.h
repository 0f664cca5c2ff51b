// Launch of the CUDA kernel of counter.h; returns CUDA's error, 0 for none.
#pragma once

#include <cstdint>

namespace pyrl::counter {

// mixes [count], on the device as `uids` is.
int launch_mix(const int64_t* uids, int64_t count, uint64_t seed, int64_t* mixes, void* stream);

}  // namespace pyrl::counter
