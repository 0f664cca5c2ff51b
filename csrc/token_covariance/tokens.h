// One token of the covariance, free of torch: the CPU and the CUDA kernels both call it.
#pragma once

#include <cstdint>
#include <limits>

#include "token_covariance/exact_sum.h"

namespace pyrl::covariance {

// Of covariance_sums: the words of the sum of logprobs, those of the sum of advantages, and the count.
inline constexpr int kSums = 2 * exact::kWords + 1;

struct Tokens {
  const float* logprobs;
  const float* advantages;
  const bool* mask;
  int64_t count;
};

// The sums of at most exact::kMaxTerms tokens.
struct Partial {
  int64_t logprobs[exact::kWindows];
  int64_t advantages[exact::kWindows];
  int64_t count;
};

// What entry `i` of covariance_sums gets from `partial`.
constexpr int64_t carried(const Partial& partial, int i) {
  if (i < exact::kWords) return exact::carried(partial.logprobs, i);
  if (i < 2 * exact::kWords) return exact::carried(partial.advantages, i - exact::kWords);
  return partial.count;
}

struct Means {
  double logprob, advantage;
};

constexpr Means means(const int64_t* sums) {
  const int64_t count = sums[kSums - 1];
  return {exact::mean(sums, count), exact::mean(sums + exact::kWords, count)};
}

constexpr float covariance(float logprob, float advantage, bool valid, const Means& means) {
  if (!valid) return 0;
  if (!exact::finite(logprob) || !exact::finite(advantage)) return std::numeric_limits<float>::quiet_NaN();
  return static_cast<float>((logprob - means.logprob) * (advantage - means.advantage));
}

}  // namespace pyrl::covariance
