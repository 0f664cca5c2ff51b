#include "selection/selection.h"

#include "cuda/stream.h"
#include "selection/arguments.h"
#include "selection/selection_kernels.h"

namespace pyrl {

using torch::stable::Tensor;

void selection_histogram_cuda(
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
  const cuda::Scope scope(cov);
  const selection::Arguments arguments(cov, mask, eligible, token_uids);
  const selection::Query query = selection::query_of(lower, upper, by_covariance, seed);
  const int error = selection::launch_histogram(
      arguments.tokens(), query, selection::round_of(round, by_covariance), selection::state_of(state, cov),
      selection::counts_of(counts, cov), scope.stream());
  cuda::check(error, "selection_histogram");
}

void selection_advance_cuda(
    const Tensor& counts, bool by_covariance, int64_t round, int64_t numerator, int64_t denominator, const Tensor& state) {
  const cuda::Scope scope(counts);
  const int error = selection::launch_advance(
      selection::counts_of(counts, state), by_covariance, selection::round_of(round, by_covariance),
      selection::ratio_of(numerator, denominator), selection::state_of(state, counts), scope.stream());
  cuda::check(error, "selection_advance");
}

Tensor selection_mark_cuda(
    const Tensor& cov,
    const Tensor& mask,
    const std::optional<Tensor>& eligible,
    const Tensor& token_uids,
    double lower,
    double upper,
    bool by_covariance,
    int64_t seed,
    const Tensor& state) {
  const cuda::Scope scope(cov);
  const selection::Arguments arguments(cov, mask, eligible, token_uids);
  const selection::Query query = selection::query_of(lower, upper, by_covariance, seed);
  Tensor marks = torch::stable::new_empty(arguments.cov(), {cov.numel()}, torch::headeronly::ScalarType::Bool);
  const int error = selection::launch_mark(
      arguments.tokens(), query, selection::state_of(state, cov), static_cast<bool*>(marks.mutable_data_ptr()),
      scope.stream());
  cuda::check(error, "selection_mark");
  return marks;
}

}  // namespace pyrl
