#include "logprob_entropy/logprob_entropy.h"

#include <torch/csrc/stable/ops.h>

#include "cuda/stream.h"
#include "logprob_entropy/arguments.h"
#include "logprob_entropy/logprob_entropy_kernels.h"

namespace pyrl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

rows::Problem problem_of(
    const Tensor& logits, const Tensor& labels, const Tensor& temperature, int64_t vocab_start, int64_t vocab_size) {
  const rows::Problem problem = rows::problem_of(logits, labels, temperature, vocab_start, vocab_size);
  STD_TORCH_CHECK(
      problem.element != rows::Element::kDouble, "logprob_entropy: got fp64 logits on CUDA, wanted fp32, bf16 or fp16");
  return problem;
}

rows::Shards shards_of(const Tensor& stats, const Tensor& temperature) {
  rows::check_stats(stats);
  STD_TORCH_CHECK(stats.scalar_type() == ScalarType::Float, "logprob_entropy: got fp64 stats on CUDA, wanted fp32");
  return {
      static_cast<const float*>(stats.const_data_ptr()),
      stats.size(0),
      stats.size(1),
      static_cast<const double*>(temperature.const_data_ptr()),
      rows::temperature_stride(temperature, stats.size(1), stats)};
}

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace

Tensor logprob_entropy_stats_cuda(
    const Tensor& logits, const Tensor& labels, const Tensor& temperature, int64_t vocab_start, int64_t vocab_size) {
  const cuda::Scope scope(logits);
  const rows::Problem problem = problem_of(logits, labels, temperature, vocab_start, vocab_size);
  const int64_t tokens = logits.size(0);
  Tensor stats = torch::stable::new_empty(logits, {tokens, 4}, ScalarType::Float);
  cuda::check(
      rows::launch_stats(problem, vocab_size, tokens, data<float>(stats), scope.stream()), "logprob_entropy_stats");
  return stats;
}

Tensor logprob_entropy_combine_cuda(const Tensor& stats, const Tensor& temperature) {
  const cuda::Scope scope(stats);
  const rows::Shards shards = shards_of(stats, temperature);
  Tensor combined = torch::stable::new_empty(stats, {shards.tokens, 4});
  cuda::check(rows::launch_combine(shards, data<float>(combined), scope.stream()), "logprob_entropy_combine");
  return combined;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> logprob_entropy_merge_cuda(
    const Tensor& stats, const Tensor& labels, const Tensor& temperature) {
  const cuda::Scope scope(stats);
  const rows::Shards shards = shards_of(stats, temperature);
  rows::check_vector(labels, "labels", ScalarType::Long, shards.tokens, stats);
  Tensor logprobs = torch::stable::new_empty(stats, {shards.tokens});
  Tensor entropy = torch::stable::new_empty(stats, {shards.tokens});
  Tensor lse = torch::stable::new_empty(stats, {shards.tokens}, ScalarType::Double);
  Tensor bad_row = torch::stable::new_empty(stats, torch::headeronly::IntHeaderOnlyArrayRef{}, ScalarType::Long);
  torch::stable::fill_(bad_row, -1);
  const rows::Merge merge{
      static_cast<const int64_t*>(labels.const_data_ptr()), data<float>(logprobs), data<float>(entropy),
      data<double>(lse), data<uint64_t>(bad_row)};
  cuda::check(rows::launch_merge(shards, merge, scope.stream()), "logprob_entropy_merge");
  return {logprobs, entropy, lse, bad_row};
}

void logprob_entropy_backward_out_cuda(
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
  const cuda::Scope scope(logits);
  const rows::Problem problem = problem_of(logits, labels, temperature, vocab_start, vocab_size);
  const rows::Gradient gradient = rows::gradient_of(grad_logprobs, grad_entropy, logits, entropy, lse, out);
  cuda::check(rows::launch_backward(problem, gradient, logits.size(0), scope.stream()), "logprob_entropy_backward");
}

Tensor logprob_entropy_backward_cuda(
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
  logprob_entropy_backward_out_cuda(
      grad_logprobs, grad_entropy, logits, labels, temperature, entropy, lse, vocab_start, vocab_size, out);
  return out;
}

void logprob_entropy_backward_inplace_cuda(
    const Tensor& grad_logprobs,
    const std::optional<Tensor>& grad_entropy,
    const Tensor& logits,
    const Tensor& labels,
    const Tensor& temperature,
    const Tensor& entropy,
    const Tensor& lse,
    int64_t vocab_start,
    int64_t vocab_size) {
  logprob_entropy_backward_out_cuda(
      grad_logprobs, grad_entropy, logits, labels, temperature, entropy, lse, vocab_start, vocab_size, logits);
}

}  // namespace pyrl
