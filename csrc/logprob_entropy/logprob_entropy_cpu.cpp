#include "logprob_entropy/logprob_entropy.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string>

#include <torch/csrc/stable/ops.h>

#include "logprob_entropy/arguments.h"
#include "logprob_entropy/merge.h"
#include "logprob_entropy/rows.h"

namespace pyrl {

using rows::Combined;
using rows::kIgnore;
using rows::Merged;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

constexpr int64_t kElementsPerTask = 1 << 15;  // about 20 us of work, well above the cost of waking a thread

struct Kernels {
  rows::StatsFunction stats;
  rows::BackwardFunction backward;
};

Kernels choose_kernels() {
  const char* asked = std::getenv("PYRL_CPU_KERNELS");
  const std::string name = asked == nullptr ? "" : asked;
  STD_TORCH_CHECK(
      name.empty() || name == "generic", "PYRL_CPU_KERNELS is '", name, "': unset it, or set it to generic");
#ifdef PYRL_HAVE_AVX2
  if (name.empty() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return {rows::avx2::stats, rows::avx2::backward};
  }
#endif
  return {rows::generic::stats, rows::generic::backward};
}

// The fastest for this processor. PYRL_CPU_KERNELS=generic asks for those of every processor of the architecture: for
// tests, and for the same bits on machines that differ.
const Kernels& kernels() {
  static const Kernels chosen = choose_kernels();
  return chosen;
}

int64_t rows_per_task(int64_t width) {
  return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, width));
}

void run_backward(
    const Tensor& grad_logprobs,
    const std::optional<Tensor>& grad_entropy,
    const Tensor& logits,
    const Tensor& labels,
    const Tensor& temperature,
    const Tensor& entropy,
    const Tensor& lse,
    int64_t vocab_start,
    int64_t vocab_size,
    const Tensor& out) {
  const rows::Problem problem = rows::problem_of(logits, labels, temperature, vocab_start, vocab_size);
  const rows::Gradient gradient = rows::gradient_of(grad_logprobs, grad_entropy, logits, entropy, lse, out);
  const rows::BackwardFunction backward = kernels().backward;  // may throw, so not among the threads
  torch::stable::parallel_for(0, logits.size(0), rows_per_task(problem.width), [&](int64_t begin, int64_t end) {
    backward(problem, gradient, begin, end);
  });
}

template <typename C>
void combine_rows(const Tensor& stats, const double* temperature, int64_t temperature_step, C* out) {
  const int64_t shards = stats.size(0);
  const int64_t tokens = stats.size(1);
  const auto* data = static_cast<const C*>(stats.const_data_ptr());
  torch::stable::parallel_for(0, tokens, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const Combined<C> row(data + 4 * t, shards, 4 * tokens, 1.0 / temperature[t * temperature_step]);
      out[4 * t] = static_cast<C>(row.m);
      out[4 * t + 1] = static_cast<C>(row.s);
      out[4 * t + 2] = static_cast<C>(row.r);
      out[4 * t + 3] = static_cast<C>(row.x_y);
    }
  });
}

template <typename C>
int64_t merge_rows(
    const Tensor& stats,
    const int64_t* labels,
    const double* temperature,
    int64_t temperature_step,
    C* logprobs,
    C* entropy,
    double* lse) {
  const int64_t shards = stats.size(0);
  const int64_t tokens = stats.size(1);
  const auto* data = static_cast<const C*>(stats.const_data_ptr());
  std::atomic<int64_t> first_bad{tokens};
  torch::stable::parallel_for(0, tokens, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      if (labels[t] == kIgnore) {
        logprobs[t] = entropy[t] = 0;
        lse[t] = 0;
        continue;
      }
      const double inv_t = 1.0 / temperature[t * temperature_step];
      const Merged row(Combined<C>(data + 4 * t, shards, 4 * tokens, inv_t), inv_t);
      logprobs[t] = static_cast<C>(row.logprob);
      entropy[t] = static_cast<C>(row.entropy);
      lse[t] = row.lse;
      if (row.bad) {
        int64_t seen = first_bad.load();
        while (t < seen && !first_bad.compare_exchange_weak(seen, t)) {
        }
        break;  // rows after it in this range cannot be the first
      }
    }
  });
  return first_bad.load() == tokens ? -1 : first_bad.load();
}

}  // namespace

Tensor logprob_entropy_stats_cpu(
    const Tensor& logits, const Tensor& labels, const Tensor& temperature, int64_t vocab_start, int64_t vocab_size) {
  const rows::Problem problem = rows::problem_of(logits, labels, temperature, vocab_start, vocab_size);
  const int64_t tokens = logits.size(0);
  Tensor stats = torch::stable::new_empty(logits, {tokens, 4}, rows::statistics_dtype(logits));
  void* out = stats.mutable_data_ptr();
  const rows::StatsFunction stats_rows = kernels().stats;  // may throw, so not among the threads
  torch::stable::parallel_for(0, tokens, rows_per_task(problem.width), [&](int64_t begin, int64_t end) {
    stats_rows(problem, out, begin, end);
  });
  return stats;
}

Tensor logprob_entropy_combine_cpu(const Tensor& stats, const Tensor& temperature) {
  rows::check_stats(stats);
  const int64_t step = rows::temperature_stride(temperature, stats.size(1), stats);
  const auto* t = static_cast<const double*>(temperature.const_data_ptr());
  Tensor out = torch::stable::new_empty(stats, {stats.size(1), 4});
  if (stats.scalar_type() == ScalarType::Double) {
    combine_rows(stats, t, step, static_cast<double*>(out.mutable_data_ptr()));
  } else {
    combine_rows(stats, t, step, static_cast<float*>(out.mutable_data_ptr()));
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> logprob_entropy_merge_cpu(
    const Tensor& stats, const Tensor& labels, const Tensor& temperature) {
  rows::check_stats(stats);
  const int64_t tokens = stats.size(1);
  rows::check_vector(labels, "labels", ScalarType::Long, tokens, stats);
  const int64_t step = rows::temperature_stride(temperature, tokens, stats);
  Tensor logprobs = torch::stable::new_empty(stats, {tokens});
  Tensor entropy = torch::stable::new_empty(stats, {tokens});
  Tensor lse = torch::stable::new_empty(stats, {tokens}, ScalarType::Double);
  Tensor bad_row = torch::stable::new_empty(stats, torch::headeronly::IntHeaderOnlyArrayRef{}, ScalarType::Long);

  const auto* y = static_cast<const int64_t*>(labels.const_data_ptr());
  const auto* t = static_cast<const double*>(temperature.const_data_ptr());
  auto* l = static_cast<double*>(lse.mutable_data_ptr());
  auto* bad = static_cast<int64_t*>(bad_row.mutable_data_ptr());
  if (stats.scalar_type() == ScalarType::Double) {
    *bad = merge_rows(
        stats, y, t, step, static_cast<double*>(logprobs.mutable_data_ptr()),
        static_cast<double*>(entropy.mutable_data_ptr()), l);
  } else {
    *bad = merge_rows(
        stats, y, t, step, static_cast<float*>(logprobs.mutable_data_ptr()),
        static_cast<float*>(entropy.mutable_data_ptr()), l);
  }
  return {logprobs, entropy, lse, bad_row};
}

Tensor logprob_entropy_backward_cpu(
    const Tensor& grad_logprobs,
    const std::optional<Tensor>& grad_entropy,
    const Tensor& logits,
    const Tensor& labels,
    const Tensor& temperature,
    const Tensor& entropy,
    const Tensor& lse,
    int64_t vocab_start,
    int64_t vocab_size) {
  Tensor out = torch::stable::new_empty(logits, logits.sizes());
  run_backward(
      grad_logprobs, grad_entropy, logits, labels, temperature, entropy, lse, vocab_start, vocab_size, out);
  return out;
}

void logprob_entropy_backward_inplace_cpu(
    const Tensor& grad_logprobs,
    const std::optional<Tensor>& grad_entropy,
    const Tensor& logits,
    const Tensor& labels,
    const Tensor& temperature,
    const Tensor& entropy,
    const Tensor& lse,
    int64_t vocab_start,
    int64_t vocab_size) {
  run_backward(
      grad_logprobs, grad_entropy, logits, labels, temperature, entropy, lse, vocab_start, vocab_size, logits);
}

void logprob_entropy_backward_out_cpu(
    const Tensor& grad_logprobs,
    const std::optional<Tensor>& grad_entropy,
    const Tensor& logits,
    const Tensor& labels,
    const Tensor& temperature,
    const Tensor& entropy,
    const Tensor& lse,
    int64_t vocab_start,
    int64_t vocab_size,
    const Tensor& out) {
  run_backward(
      grad_logprobs, grad_entropy, logits, labels, temperature, entropy, lse, vocab_start, vocab_size, out);
}

}  // namespace pyrl
