// The CUDA kernel of the counter, on the host, against its formula.
#include <vector>

#include "check.h"
#include "counter/counter_kernels.h"

namespace {

// SplitMix64's finalizer (doi 10.1145/2714064.2660195), of the seed and of the uid, each moved by a constant of its own.
uint64_t finalized(uint64_t x) {
  x ^= x >> 30;
  x *= 0xBF58476D1CE4E5B9u;
  x ^= x >> 27;
  x *= 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

uint64_t mix(uint64_t seed, uint64_t uid) {
  return finalized(finalized(uid + 0x9E3779B97F4A7C15u) ^ finalized(seed + 0xD1B54A32D192ED03u));
}

}  // namespace

int main() {
  constexpr uint64_t kSeed = 0x8000000000000005ull;
  std::vector<int64_t> uids, mixes(700, 5), want;
  for (int64_t t = 0; t < 700; ++t) uids.push_back(t * t - 1000);
  for (const int64_t uid : uids) want.push_back(static_cast<int64_t>(mix(kSeed, static_cast<uint64_t>(uid))));
  pyrl::counter::launch_mix(uids.data(), 700, kSeed, mixes.data(), nullptr);
  check::that(mixes == want, "mixes");
  check::that(pyrl::counter::launch_mix(nullptr, 0, kSeed, nullptr, nullptr) == 0, "no mixes");
  return check::report();
}
