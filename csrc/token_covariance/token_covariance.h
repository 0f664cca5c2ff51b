// Exact sums for the token covariance cov_t = (logprob_t - mean logprob) (advantage_t - mean advantage).
//
// An fp32 number is an integer M (|M| < 2^24) times 2^(s - 149), s in [0, 253]. M 2^(s mod 8) is added to the int64
// limb s / 8, so a sum is 32 limbs of weight 2^(8 limb - 149): no rounding, no range to choose, and no overflow below
// 2^32 tokens. Limbs add as integers, so any partition of the tokens over threads and ranks gives the same bits.
#pragma once

#include <cstdint>

#include <torch/csrc/stable/tensor.h>

namespace pyrl {

inline constexpr int64_t kSumLimbs = 32;

// logprobs, advantages fp32 [T]; mask bool [T] -> int64 [2 kSumLimbs + 1]: limbs of the sum of logprobs, limbs of the
// sum of advantages, and the count, over tokens where mask is true and both numbers are finite.
torch::stable::Tensor covariance_sums_cpu(
    const torch::stable::Tensor& logprobs,
    const torch::stable::Tensor& advantages,
    const torch::stable::Tensor& mask);

}  // namespace pyrl
