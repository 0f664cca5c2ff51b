// What a processor can do at most: the arithmetic of the row kernel's forward pass and nothing else, over numbers that
// stay in the first-level cache. An element is a load, a maximum, an exponential and two multiply-adds.
#include <cstdint>

#include "logprob_entropy/vec.h"

namespace {

constexpr int64_t kValues = 1024;
constexpr int kUnroll = 2;  // 4 and 8 are slower: their sums do not stay in 16 registers

}  // namespace

// Works on `elements` (rounded down to kValues) numbers in [-1, 0] under the multiplier `weight`; returns what the
// compiler must not drop.
extern "C" float ceiling(int64_t elements, float weight) {
  alignas(64) float x[kValues];
  for (int64_t j = 0; j < kValues; ++j) x[j] = -static_cast<float>(j) / kValues;
  Vec<float> best[kUnroll] = {}, s[kUnroll] = {}, r[kUnroll] = {};
  for (int64_t done = 0; done + kValues <= elements; done += kValues) {
    asm volatile("" : : "r"(x) : "memory");  // the numbers may have changed: no round repeats the one before
    for (int64_t j = 0; j < kValues; j += kUnroll * kLanes) {
      for (int u = 0; u < kUnroll; ++u) {
        const Vec<float> v = load8(x + j + u * kLanes);
        const Vec<float> e = exp2_8(v * static_cast<float>(kLog2E));
        best[u] = max8(v, best[u]);
        s[u] = e * weight + s[u];
        r[u] = e * v + r[u];
      }
    }
  }
  float total = 0;
  for (int u = 0; u < kUnroll; ++u) total += static_cast<float>(sum8(best[u]) + sum8(s[u]) + sum8(r[u]));
  return total;
}
