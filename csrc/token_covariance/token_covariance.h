// Token covariance cov_t = (logprob_t - mean logprob) (advantage_t - mean advantage), arXiv 2505.22617 eq. 10: one term of
// the covariance that eq. 7 ties to the change of entropy.
//
// The means run over the tokens where `mask` is true and both numbers are finite, of all ranks. Their sums are exact
// integers (exact_sum.h), added over ranks by one integer all-reduce of 152 bytes; a mean is rounded once, to fp64, and
// cov_t is two fp64 subtractions and a product, rounded to fp32. No step leaves the order of additions or a fused
// multiply-add to choose, so the result is the same bits for any partition, and on CPU and CUDA.
//
// CUDA: one pass for the sums, one for the result; every block of the second divides the sums itself, which costs less
// than a launch. Budget for 3 million tokens on an H100 (132 multiprocessors, 3.0 TB/s of copy bandwidth):
//   sums     4 + 4 + 1 bytes a token = 27 MB, 9 us; about 80 integer instructions a token, 10 us at 60% issue rate
//   result   9 bytes read and 4 written = 39 MB, 13 us from memory, less where the 50 MB L2 still holds the inputs
#pragma once

#include <cstdint>

#include <torch/csrc/stable/tensor.h>

namespace pyrl {

// logprobs, advantages fp32 [T]; mask bool [T] -> int64 [covariance::kSums]
torch::stable::Tensor covariance_sums_cpu(
    const torch::stable::Tensor& logprobs,
    const torch::stable::Tensor& advantages,
    const torch::stable::Tensor& mask);
torch::stable::Tensor covariance_sums_cuda(
    const torch::stable::Tensor& logprobs,
    const torch::stable::Tensor& advantages,
    const torch::stable::Tensor& mask);

// -> fp32 [T]: 0 where masked, NaN where a valid token's log-prob or advantage is not finite.
torch::stable::Tensor token_covariance_cpu(
    const torch::stable::Tensor& logprobs,
    const torch::stable::Tensor& advantages,
    const torch::stable::Tensor& mask,
    const torch::stable::Tensor& sums);
torch::stable::Tensor token_covariance_cuda(
    const torch::stable::Tensor& logprobs,
    const torch::stable::Tensor& advantages,
    const torch::stable::Tensor& mask,
    const torch::stable::Tensor& sums);

}  // namespace pyrl
