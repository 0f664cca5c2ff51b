#include "token_covariance/token_covariance.h"

#include <algorithm>
#include <atomic>

#include <torch/csrc/stable/ops.h>

#include "token_covariance/arguments.h"

namespace pyrl {

using covariance::kSums;
using torch::stable::Tensor;

namespace {

constexpr int64_t kTokensPerTask = 1 << 15;  // about 50 us of work, well above the cost of waking a thread

void add(covariance::Partial& partial, float logprob, float advantage) {
  const exact::Term x = exact::term(logprob);
  const exact::Term y = exact::term(advantage);
  partial.logprobs[x.window] += x.value;
  partial.advantages[y.window] += y.value;
  ++partial.count;
}

// Adds the tokens [begin, end) to sums[kSums].
void add_range(const covariance::Tokens& tokens, int64_t begin, int64_t end, int64_t* sums) {
  for (int64_t start = begin; start < end; start += exact::kMaxTerms) {
    covariance::Partial partial{};
    for (int64_t t = start; t < std::min(end, start + exact::kMaxTerms); ++t) {
      if (!tokens.mask[t] || !exact::finite(tokens.logprobs[t]) || !exact::finite(tokens.advantages[t])) continue;
      add(partial, tokens.logprobs[t], tokens.advantages[t]);
    }
    for (int i = 0; i < kSums; ++i) sums[i] += covariance::carried(partial, i);
  }
}

}  // namespace

Tensor covariance_sums_cpu(const Tensor& logprobs, const Tensor& advantages, const Tensor& mask) {
  const covariance::Arguments arguments(logprobs, advantages, mask);
  const covariance::Tokens tokens = arguments.tokens();
  Tensor sums = arguments.new_sums();
  auto* totals = static_cast<int64_t*>(sums.mutable_data_ptr());
  torch::stable::parallel_for(0, tokens.count, kTokensPerTask, [=](int64_t begin, int64_t end) {
    int64_t mine[kSums] = {};
    add_range(tokens, begin, end, mine);
    for (int i = 0; i < kSums; ++i) std::atomic_ref(totals[i]).fetch_add(mine[i], std::memory_order_relaxed);
  });
  return sums;
}

Tensor token_covariance_cpu(
    const Tensor& logprobs, const Tensor& advantages, const Tensor& mask, const Tensor& sums) {
  const covariance::Arguments arguments(logprobs, advantages, mask);
  const covariance::Tokens tokens = arguments.tokens();
  const covariance::Means means = covariance::means(covariance::sums_of(sums, logprobs));
  Tensor result = arguments.new_result();
  auto* out = static_cast<float*>(result.mutable_data_ptr());
  torch::stable::parallel_for(0, tokens.count, kTokensPerTask, [=](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      out[t] = covariance::covariance(tokens.logprobs[t], tokens.advantages[t], tokens.mask[t], means);
    }
  });
  return result;
}

}  // namespace pyrl
