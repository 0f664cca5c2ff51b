// The counter-based mix (formulas: counter.h), free of torch: the CPU and the CUDA kernels both call it.
#pragma once

#include <cstdint>

namespace pyrl {

inline constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ull;  // 2^64 / golden ratio, odd
inline constexpr uint64_t kOther = 0xD1B54A32D192ED03ull;   // odd, far from golden

constexpr uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

constexpr uint64_t mix(uint64_t seed, uint64_t uid) {
  return mix64(mix64(uid + kGolden) ^ mix64(seed + kOther));
}

}  // namespace pyrl
