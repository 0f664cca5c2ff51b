#include "token_covariance/token_covariance.h"

#include "cuda/stream.h"
#include "token_covariance/arguments.h"
#include "token_covariance/token_covariance_kernels.h"

namespace pyrl {

using torch::stable::Tensor;

Tensor covariance_sums_cuda(const Tensor& logprobs, const Tensor& advantages, const Tensor& mask) {
  const cuda::Scope scope(logprobs);
  const covariance::Arguments arguments(logprobs, advantages, mask);
  Tensor sums = arguments.new_sums();
  auto* totals = static_cast<int64_t*>(sums.mutable_data_ptr());
  cuda::check(covariance::launch_sums(arguments.tokens(), totals, scope.stream()), "covariance_sums");
  return sums;
}

Tensor token_covariance_cuda(
    const Tensor& logprobs, const Tensor& advantages, const Tensor& mask, const Tensor& sums) {
  const cuda::Scope scope(logprobs);
  const covariance::Arguments arguments(logprobs, advantages, mask);
  Tensor result = arguments.new_result();
  const int error = covariance::launch_covariance(
      arguments.tokens(), covariance::sums_of(sums, logprobs), static_cast<float*>(result.mutable_data_ptr()), scope.stream());
  cuda::check(error, "token_covariance");
  return result;
}

}  // namespace pyrl
