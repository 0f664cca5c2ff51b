#include "token_covariance/token_covariance_kernels.h"

#include "device.cuh"

namespace pyrl::covariance {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / device::kWarp;
constexpr int kUnroll = 4;  // tokens in flight in a thread

// Of covariance_sums: a block adds its tokens and is done, so a thread carries once.
constexpr int kTokensPerThread = 32;
constexpr int64_t kTokensPerBlock = kThreads * kTokensPerThread;
static_assert(kTokensPerThread <= exact::kMaxTerms && kTokensPerThread % kUnroll == 0);

struct Load {
  float logprob[kUnroll], advantage[kUnroll];
  bool valid[kUnroll];
};

// Tokens first, first + kThreads, ...: all loads before the first use.
PYRL_DEVICE Load load(const Tokens& tokens, int64_t first) {
  Load loaded;
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t t = first + u * kThreads;
    const bool inside = t < tokens.count;
    loaded.valid[u] = inside && tokens.mask[t];
    loaded.logprob[u] = inside ? tokens.logprobs[t] : 0.0f;
    loaded.advantage[u] = inside ? tokens.advantages[t] : 0.0f;
  }
  return loaded;
}

// The index of a register has to be known when compiling, so every window is asked.
PYRL_DEVICE void add(int64_t (&windows)[exact::kWindows], float x) {
  const exact::Term term = exact::term(x);
#pragma unroll
  for (int window = 0; window < exact::kWindows; ++window) {
    if (window == term.window) windows[window] += term.value;
  }
}

PYRL_KERNEL sums_kernel(Tokens tokens, int64_t* sums) {
  PYRL_SHARED(int64_t, warp_sums, kWarps * kSums);
  const int thread = device::thread_index();
  Partial partial{};
  const int64_t begin = device::block_index() * kTokensPerBlock + thread;
  for (int64_t first = begin; first < begin + kTokensPerBlock; first += kThreads * kUnroll) {
    const Load loaded = load(tokens, first);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!loaded.valid[u] || !exact::finite(loaded.logprob[u]) || !exact::finite(loaded.advantage[u])) continue;
      add(partial.logprobs, loaded.logprob[u]);
      add(partial.advantages, loaded.advantage[u]);
      ++partial.count;
    }
  }
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    int64_t sum = carried(partial, i);
    for (int distance = device::kWarp / 2; distance > 0; distance /= 2) sum += device::shuffle_down(sum, distance);
    if (device::lane() == 0) warp_sums[device::warp() * kSums + i] = sum;
  }
  device::block_barrier();
  if (thread >= kSums) return;
  int64_t sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += warp_sums[warp * kSums + thread];
  if (sum != 0) device::atomic_add(sums + thread, sum);
}

PYRL_KERNEL covariance_kernel(Tokens tokens, const int64_t* sums, float* result) {
  PYRL_SHARED(double, block_means, 2);
  const int thread = device::thread_index();
  const int which = device::warp();  // two warps, since the lanes of one would wait for each other
  if (which < 2 && device::lane() == 0) block_means[which] = exact::mean(sums + which * exact::kWords, sums[kSums - 1]);
  device::block_barrier();
  const Means means{block_means[0], block_means[1]};
  const int64_t stride = device::grid_size() * kThreads * kUnroll;
  for (int64_t first = device::block_index() * kThreads * kUnroll + thread; first < tokens.count; first += stride) {
    const Load loaded = load(tokens, first);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t t = first + u * kThreads;
      if (t < tokens.count) result[t] = covariance(loaded.logprob[u], loaded.advantage[u], loaded.valid[u], means);
    }
  }
}

int64_t blocks_for(int64_t tokens, int64_t per_block) {
  return (tokens + per_block - 1) / per_block;
}

}  // namespace

int launch_sums(const Tokens& tokens, int64_t* sums, void* stream) {
  return device::launch(sums_kernel, blocks_for(tokens.count, kTokensPerBlock), kThreads, stream, tokens, sums);
}

int launch_covariance(const Tokens& tokens, const int64_t* sums, float* result, void* stream, int max_blocks) {
  const int64_t blocks = blocks_for(tokens.count, kThreads * kUnroll);
  const int64_t limited = blocks < max_blocks ? blocks : max_blocks;
  return device::launch(covariance_kernel, limited, kThreads, stream, tokens, sums, result);
}

}  // namespace pyrl::covariance
