// A block has a fixed range of tokens, whatever the device, and adds its sums in a fixed tree; one warp a sum then adds
// the blocks' in a fixed tree. So two runs give the same bits, on any two GPUs.
#include "policy_loss/policy_loss_kernels.h"

#include "device.cuh"

namespace pyrl::surrogate {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / device::kWarp;
constexpr int kPerThread = 2;  // few: a micro-batch of 16,384 tokens should reach many multiprocessors
constexpr int64_t kTokensPerBlock = kThreads * kPerThread;

// The sum over a warp, in its first lane.
PYRL_DEVICE double warp_sum(double value) {
#pragma unroll
  for (int distance = device::kWarp / 2; distance > 0; distance /= 2) value += device::shuffle_down(value, distance);
  return value;
}

template <typename C>
PYRL_KERNEL tokens_kernel(Tokens<C> tokens, Settings settings, double* partial) {
  PYRL_SHARED(double, of_warps, kWarps * kSums);
  const int thread = device::thread_index();
  const int64_t first = device::block_index() * kTokensPerBlock + thread;
  double sums[kSums] = {};
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t t = first + i * kThreads;
    if (t >= tokens.count) break;
    const Token<C> token = run_token(tokens, t, settings);
#pragma unroll
    for (int s = 0; s < kSums; ++s) sums[s] += token.sums[s];
  }
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
    const double sum = warp_sum(sums[s]);
    if (device::lane() == 0) of_warps[device::warp() * kSums + s] = sum;
  }
  device::block_barrier();
  if (thread >= kSums) return;
  double sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += of_warps[w * kSums + thread];
  partial[device::block_index() * kSums + thread] = sum;
}

// One block of kSums warps.
PYRL_KERNEL sums_kernel(const double* partial, int64_t blocks, double* sums) {
  double sum = 0;
  for (int64_t block = device::lane(); block < blocks; block += device::kWarp) {
    sum += partial[block * kSums + device::warp()];
  }
  sum = warp_sum(sum);
  if (device::lane() == 0) sums[device::warp()] = sum;
}

}  // namespace

int64_t blocks_of(int64_t tokens) { return (tokens + kTokensPerBlock - 1) / kTokensPerBlock; }

template <typename C>
int launch(const Tokens<C>& tokens, const Settings& settings, double* partial, double* sums, void* stream) {
  const int64_t blocks = blocks_of(tokens.count);
  const int error = device::launch(tokens_kernel<C>, blocks, kThreads, stream, tokens, settings, partial);
  if (error != 0) return error;
  return device::launch(sums_kernel, 1, kSums * device::kWarp, stream, partial, blocks, sums);
}

template int launch(const Tokens<float>&, const Settings&, double*, double*, void*);
template int launch(const Tokens<double>&, const Settings&, double*, double*, void*);

}  // namespace pyrl::surrogate
