#include "selection/selection.h"

#include <atomic>

#include <torch/csrc/stable/ops.h>

#include "selection/arguments.h"

namespace pyrl {

using selection::Arguments;
using selection::kBins;
using selection::kCounts;
using selection::Query;
using selection::State;
using selection::Tokens;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

constexpr int64_t kTokensPerTask = 1 << 15;  // about 50 us of work, well above the cost of waking a thread

bool candidate(const Tokens& tokens, int64_t t, const Query& query) {
  return tokens.mask[t] && selection::in_band(tokens.cov[t], query) &&
         (tokens.eligible == nullptr || tokens.eligible[t]);
}

}  // namespace

void selection_histogram_cpu(
    const Tensor& cov,
    const Tensor& mask,
    const std::optional<Tensor>& eligible,
    const Tensor& token_uids,
    double lower,
    double upper,
    bool by_covariance,
    int64_t seed,
    int64_t round,
    const Tensor& state,
    const Tensor& counts) {
  const Arguments arguments(cov, mask, eligible, token_uids);
  const Tokens tokens = arguments.tokens();
  const Query query = selection::query_of(lower, upper, by_covariance, seed);
  const int digit = selection::round_of(round, by_covariance);
  const State now = *selection::state_of(state, cov);
  int32_t* totals = selection::counts_of(counts, cov);
  if (now.decided) return;
  torch::stable::parallel_for(0, tokens.count, kTokensPerTask, [=](int64_t begin, int64_t end) {
    int32_t mine[kCounts] = {};
    int64_t valid = 0;
    for (int64_t t = begin; t < end; ++t) {
      valid += tokens.mask[t];
      if (!candidate(tokens, t, query)) continue;
      const int bin = selection::counted_digit(tokens.cov[t], tokens.uids + t, query, now, digit);
      if (bin >= 0) ++mine[bin];
    }
    for (int part = 0; part < kCounts - kBins; ++part) mine[kBins + part] = selection::part_of(valid, part);
    for (int i = 0; i < kCounts; ++i) std::atomic_ref(totals[i]).fetch_add(mine[i], std::memory_order_relaxed);
  });
}

void selection_advance_cpu(
    const Tensor& counts, bool by_covariance, int64_t round, int64_t numerator, int64_t denominator, const Tensor& state) {
  const int digit = selection::round_of(round, by_covariance);
  const selection::Ratio ratio = selection::ratio_of(numerator, denominator);
  const int32_t* bins = selection::counts_of(counts, state);
  State& now = *selection::state_of(state, counts);
  if (now.decided) return;
  if (digit == selection::first_round(by_covariance)) {
    int64_t candidates = 0;
    for (int bin = 0; bin < kBins; ++bin) candidates += bins[bin];
    selection::start(now, bins, candidates, ratio);
  }
  int64_t before = 0;
  int bin = 0;
  while (bin < kBins - 1 && before + bins[bin] < now.remaining) before += bins[bin++];
  selection::settle(now, digit, bin, before, bins[bin]);
}

Tensor selection_mark_cpu(
    const Tensor& cov,
    const Tensor& mask,
    const std::optional<Tensor>& eligible,
    const Tensor& token_uids,
    double lower,
    double upper,
    bool by_covariance,
    int64_t seed,
    const Tensor& state) {
  const Arguments arguments(cov, mask, eligible, token_uids);
  const Tokens tokens = arguments.tokens();
  const Query query = selection::query_of(lower, upper, by_covariance, seed);
  const State last = *selection::state_of(state, cov);
  Tensor result = torch::stable::new_empty(arguments.cov(), {tokens.count}, ScalarType::Bool);
  auto* out = static_cast<bool*>(result.mutable_data_ptr());
  torch::stable::parallel_for(0, tokens.count, kTokensPerTask, [=](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      out[t] = candidate(tokens, t, query) && selection::selected(tokens.cov[t], tokens.uids + t, query, last);
    }
  });
  return result;
}

}  // namespace pyrl
