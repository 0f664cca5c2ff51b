#include "selection/selection_kernels.h"

#include "device.cuh"

namespace pyrl::selection {

namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;  // tokens in flight in a thread
constexpr int64_t kTokensPerBlock = kThreads * kUnroll;
constexpr int kBinsPerLane = kBins / device::kWarp;

struct Load {
  bool valid[kUnroll];
  float cov[kUnroll];
};

// Tokens first, first + kThreads, ...: all loads before the first use.
PYRL_DEVICE Load load(const Tokens& tokens, int64_t first) {
  Load loaded;
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t t = first + u * kThreads;
    loaded.valid[u] = t < tokens.count && tokens.mask[t];
    loaded.cov[u] = t < tokens.count ? tokens.cov[t] : 0.0f;
  }
  return loaded;
}

PYRL_DEVICE bool candidate(const Load& loaded, int u, const Tokens& tokens, int64_t t, const Query& query) {
  return loaded.valid[u] && in_band(loaded.cov[u], query) && (tokens.eligible == nullptr || tokens.eligible[t]);
}

PYRL_KERNEL histogram_kernel(Tokens tokens, Query query, int round, const State* state, int32_t* counts) {
  PYRL_SHARED(int32_t, bins, kBins);
  PYRL_SHARED(int32_t, block_valid, 1);
  const State now = *state;
  if (now.decided) return;
  const int thread = device::thread_index();
  for (int bin = thread; bin < kBins; bin += kThreads) bins[bin] = 0;
  if (thread == 0) block_valid[0] = 0;
  device::block_barrier();

  int32_t valid = 0;
  const int64_t stride = device::grid_size() * kTokensPerBlock;
  for (int64_t first = device::block_index() * kTokensPerBlock + thread; first < tokens.count; first += stride) {
    const Load loaded = load(tokens, first);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t t = first + u * kThreads;
      valid += loaded.valid[u];
      if (!candidate(loaded, u, tokens, t, query)) continue;
      const int bin = counted_digit(loaded.cov[u], tokens.uids + t, query, now, round);
      if (bin >= 0) device::atomic_add(bins + bin, 1);
    }
  }
  device::atomic_add(block_valid, valid);
  device::block_barrier();

  for (int bin = thread; bin < kBins; bin += kThreads) {
    if (bins[bin] != 0) device::atomic_add(counts + bin, bins[bin]);
  }
  if (thread < kCounts - kBins) device::atomic_add(counts + kBins + thread, part_of(block_valid[0], thread));
}

// One warp. A lane has kBinsPerLane neighbouring bins; the one in whose bins the k-th key lies settles the digit.
PYRL_KERNEL advance_kernel(const int32_t* counts, bool by_covariance, int round, Ratio ratio, State* state) {
  State now = *state;
  if (now.decided) return;
  const int lane = device::lane();
  const int32_t* bins = counts + lane * kBinsPerLane;
  int64_t mine = 0;
  for (int i = 0; i < kBinsPerLane; ++i) mine += bins[i];
  int64_t up_to = mine;  // in the bins of this lane and of those before it
  for (int distance = 1; distance < device::kWarp; distance *= 2) {
    const int64_t before = device::shuffle_up(up_to, distance);
    if (lane >= distance) up_to += before;
  }
  const int64_t total = device::shuffle(up_to, device::kWarp - 1);
  if (round == first_round(by_covariance)) start(now, counts, total, ratio);
  // The first lane that reaches the k-th key; the last one where none does, which takes more tokens than can be counted.
  const uint32_t reached = device::ballot(up_to >= now.remaining || lane == device::kWarp - 1);
  if ((reached & ((2u << lane) - 1)) != 1u << lane) return;
  int64_t before = up_to - mine;
  int bin = 0;
  while (bin < kBinsPerLane - 1 && before + bins[bin] < now.remaining) before += bins[bin++];
  settle(now, round, lane * kBinsPerLane + bin, before, bins[bin]);
  *state = now;
}

PYRL_KERNEL mark_kernel(Tokens tokens, Query query, const State* state, bool* marks) {
  const State last = *state;
  const int64_t stride = device::grid_size() * kTokensPerBlock;
  const int thread = device::thread_index();
  for (int64_t first = device::block_index() * kTokensPerBlock + thread; first < tokens.count; first += stride) {
    const Load loaded = load(tokens, first);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t t = first + u * kThreads;
      if (t >= tokens.count) continue;
      marks[t] = candidate(loaded, u, tokens, t, query) && selected(loaded.cov[u], tokens.uids + t, query, last);
    }
  }
}

int64_t blocks_for(int64_t tokens, int max_blocks) {
  const int64_t blocks = (tokens + kTokensPerBlock - 1) / kTokensPerBlock;
  return blocks < max_blocks ? blocks : max_blocks;
}

}  // namespace

int launch_histogram(
    const Tokens& tokens,
    const Query& query,
    int round,
    const State* state,
    int32_t* counts,
    void* stream,
    int max_blocks) {
  const int64_t blocks = blocks_for(tokens.count, max_blocks);
  return device::launch(histogram_kernel, blocks, kThreads, stream, tokens, query, round, state, counts);
}

int launch_advance(const int32_t* counts, bool by_covariance, int round, const Ratio& ratio, State* state, void* stream) {
  return device::launch(advance_kernel, 1, device::kWarp, stream, counts, by_covariance, round, ratio, state);
}

int launch_mark(
    const Tokens& tokens, const Query& query, const State* state, bool* marks, void* stream, int max_blocks) {
  const int64_t blocks = blocks_for(tokens.count, max_blocks);
  return device::launch(mark_kernel, blocks, kThreads, stream, tokens, query, state, marks);
}

}  // namespace pyrl::selection
