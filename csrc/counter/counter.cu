#include "counter/counter_kernels.h"

#include "counter/mix.h"
#include "device.cuh"

namespace pyrl::counter {

namespace {

constexpr int kThreads = 256;

PYRL_KERNEL mix_kernel(const int64_t* uids, int64_t count, uint64_t seed, int64_t* mixes) {
  const int64_t t = device::block_index() * kThreads + device::thread_index();
  if (t < count) mixes[t] = static_cast<int64_t>(mix(seed, static_cast<uint64_t>(uids[t])));
}

}  // namespace

int launch_mix(const int64_t* uids, int64_t count, uint64_t seed, int64_t* mixes, void* stream) {
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  return device::launch(mix_kernel, blocks, kThreads, stream, uids, count, seed, mixes);
}

}  // namespace pyrl::counter
