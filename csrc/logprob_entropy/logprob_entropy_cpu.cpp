#include "logprob_entropy/logprob_entropy.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>

#include <torch/csrc/stable/ops.h>

#include "logprob_entropy/rows.h"

namespace pyrl {

using rows::Element;
using rows::kIgnore;
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

Element element_of(const Tensor& logits) {
  switch (logits.scalar_type()) {
    case ScalarType::Float:
      return Element::kFloat;
    case ScalarType::Double:
      return Element::kDouble;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    case ScalarType::Half:
      return Element::kHalf;
    default:
      STD_TORCH_CHECK(false, "logprob_entropy: logits must be fp32, fp64, bf16 or fp16");
  }
}

void check_vector(const Tensor& tensor, const char* name, ScalarType dtype, int64_t tokens) {
  STD_TORCH_CHECK(
      tensor.dim() == 1 && tensor.numel() == tokens && tensor.scalar_type() == dtype &&
          (tokens <= 1 || tensor.stride(0) == 1),
      "logprob_entropy: ", name, " must be a contiguous [", tokens, "] of ", torch::headeronly::toString(dtype));
}

// [1] or [T], fp64; the stride with which rows step through it.
int64_t temperature_stride(const Tensor& temperature, int64_t tokens) {
  STD_TORCH_CHECK(
      temperature.dim() == 1 && temperature.scalar_type() == ScalarType::Double && temperature.is_contiguous() &&
          (temperature.numel() == 1 || temperature.numel() == tokens),
      "logprob_entropy: temperature must be a contiguous fp64 [1] or [T]");
  return temperature.numel() == 1 ? 0 : 1;
}

rows::Problem problem_of(
    const Tensor& logits, const Tensor& labels, const Tensor& temperature, int64_t vocab_start, int64_t vocab_size) {
  STD_TORCH_CHECK(logits.dim() == 2, "logprob_entropy: logits must be [T, W]");
  const int64_t tokens = logits.size(0);
  const int64_t width = logits.size(1);
  STD_TORCH_CHECK(
      width <= 1 || logits.stride(1) == 1, "logprob_entropy: the last dimension of logits must have stride 1");
  check_vector(labels, "labels", ScalarType::Long, tokens);
  return rows::Problem{
      element_of(logits),
      logits.const_data_ptr(),
      logits.stride(0),
      width,
      std::clamp<int64_t>(vocab_size - vocab_start, 0, width),
      vocab_start,
      static_cast<const int64_t*>(labels.const_data_ptr()),
      static_cast<const double*>(temperature.const_data_ptr()),
      temperature_stride(temperature, tokens)};
}

ScalarType statistics_dtype(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void run_backward(
    const Tensor& grad_logprobs,
    const Tensor& grad_entropy,
    const Tensor& logits,
    const Tensor& labels,
    const Tensor& temperature,
    const Tensor& entropy,
    const Tensor& lse,
    int64_t vocab_start,
    int64_t vocab_size,
    const Tensor& out) {
  const rows::Problem problem = problem_of(logits, labels, temperature, vocab_start, vocab_size);
  const int64_t tokens = logits.size(0);
  const ScalarType dtype = statistics_dtype(logits);
  check_vector(grad_logprobs, "grad_logprobs", dtype, tokens);
  check_vector(grad_entropy, "grad_entropy", dtype, tokens);
  check_vector(entropy, "entropy", dtype, tokens);
  check_vector(lse, "lse", ScalarType::Double, tokens);
  const rows::Gradient gradient{
      grad_logprobs.const_data_ptr(),
      grad_entropy.const_data_ptr(),
      entropy.const_data_ptr(),
      static_cast<const double*>(lse.const_data_ptr()),
      out.mutable_data_ptr(),
      out.stride(0)};
  const rows::BackwardFunction backward = kernels().backward;  // may throw, so not among the threads
  torch::stable::parallel_for(0, tokens, rows_per_task(problem.width), [&](int64_t begin, int64_t end) {
    backward(problem, gradient, begin, end);
  });
}

// One row of every shard: stats[r * shard_stride + 0..3] = m, S, R, t.
template <typename C>
struct Merged {
  double logprob, entropy, lse;
  bool bad;

  Merged(const C* stats, int64_t shards, int64_t shard_stride, double inv_t) {
    double m = -std::numeric_limits<double>::infinity();
    for (int64_t r = 0; r < shards; ++r) m = std::max(m, static_cast<double>(stats[r * shard_stride]));
    double s = 0, sum_r = 0, x_y = 0;
    for (int64_t r = 0; r < shards; ++r) {
      const C* shard = stats + r * shard_stride;
      x_y += shard[3];
      if (shard[0] == -std::numeric_limits<C>::infinity()) {
        if (shard[1] != shard[1]) s = shard[1];  // NaN among -inf
        continue;
      }
      const double c = (shard[0] - m) * inv_t;
      const double w = std::exp(c);
      if (w == 0) continue;
      s += w * shard[1];
      sum_r += w * (shard[2] + c * shard[1]);
    }
    bad = !std::isfinite(m) || !std::isfinite(s) || !std::isfinite(sum_r);
    const double log_s = std::log(s);
    lse = m * inv_t + log_s;
    logprob = (x_y - m) * inv_t - log_s;
    entropy = log_s - sum_r / s;
  }
};

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
      const Merged<C> row(data + 4 * t, shards, 4 * tokens, 1.0 / temperature[t * temperature_step]);
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
  const rows::Problem problem = problem_of(logits, labels, temperature, vocab_start, vocab_size);
  const int64_t tokens = logits.size(0);
  Tensor stats = torch::stable::new_empty(logits, {tokens, 4}, statistics_dtype(logits));
  void* out = stats.mutable_data_ptr();
  const rows::StatsFunction stats_rows = kernels().stats;  // may throw, so not among the threads
  torch::stable::parallel_for(0, tokens, rows_per_task(problem.width), [&](int64_t begin, int64_t end) {
    stats_rows(problem, out, begin, end);
  });
  return stats;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> logprob_entropy_merge_cpu(
    const Tensor& stats, const Tensor& labels, const Tensor& temperature) {
  STD_TORCH_CHECK(
      stats.dim() == 3 && stats.size(2) == 4 && stats.is_contiguous(),
      "logprob_entropy: stats must be a contiguous [shards, T, 4]");
  const int64_t tokens = stats.size(1);
  check_vector(labels, "labels", ScalarType::Long, tokens);
  const int64_t step = temperature_stride(temperature, tokens);
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
    STD_TORCH_CHECK(stats.scalar_type() == ScalarType::Float, "logprob_entropy: stats must be fp32 or fp64");
    *bad = merge_rows(
        stats, y, t, step, static_cast<float*>(logprobs.mutable_data_ptr()),
        static_cast<float*>(entropy.mutable_data_ptr()), l);
  }
  return {logprobs, entropy, lse, bad_row};
}

Tensor logprob_entropy_backward_cpu(
    const Tensor& grad_logprobs,
    const Tensor& grad_entropy,
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
    const Tensor& grad_entropy,
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

}  // namespace pyrl
