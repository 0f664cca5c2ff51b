// One row of every shard, put together (formulas: logprob_entropy.h), free of torch: the CPU and the CUDA ops call it.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace pyrl::rows {

// stats[k * shard_stride + 0..3] = m, S, R, t of shard k, in rank order.
template <typename C>
struct Combined {
  double m = -std::numeric_limits<double>::infinity();
  double s = 0, r = 0, x_y = 0;

  constexpr Combined(const C* stats, int64_t shards, int64_t shard_stride, double inv_t) {
    for (int64_t k = 0; k < shards; ++k) {
      const double shard_m = stats[k * shard_stride];
      if (shard_m > m) m = shard_m;
    }
    for (int64_t k = 0; k < shards; ++k) {
      const C* shard = stats + k * shard_stride;
      x_y += shard[3];
      if (std::isnan(shard[1])) s = shard[1];  // whatever its weight
      if (shard[0] == -std::numeric_limits<C>::infinity()) continue;
      const double c = (shard[0] - m) * inv_t;
      const double w = std::exp(c);
      if (w == 0) continue;
      s += w * shard[1];
      r += w * (shard[2] + c * shard[1]);
    }
  }
};

struct Merged {
  double logprob, entropy, lse;
  bool bad;

  template <typename C>
  constexpr Merged(const Combined<C>& row, double inv_t) {
    bad = !std::isfinite(row.m) || !std::isfinite(row.s) || !std::isfinite(row.r);
    const double log_s = std::log(row.s);
    lse = row.m * inv_t + log_s;
    logprob = (row.x_y - row.m) * inv_t - log_s;
    entropy = log_s - row.r / row.s;
  }
};

}  // namespace pyrl::rows
