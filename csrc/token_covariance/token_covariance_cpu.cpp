#include "token_covariance/token_covariance.h"

#include <cmath>
#include <cstring>

#include <torch/csrc/stable/ops.h>

namespace pyrl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

void add_exactly(float value, int64_t* limbs) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t exponent = (bits >> 23) & 0xFF;
  int64_t mantissa = bits & 0x7FFFFF;
  uint32_t shift = 0;
  if (exponent != 0) {  // a normal number has a hidden bit; a subnormal one shares the exponent of the smallest normal
    mantissa |= 0x800000;
    shift = exponent - 1;
  }
  mantissa <<= shift % 8;
  limbs[shift / 8] += (bits >> 31) ? -mantissa : mantissa;
}

}  // namespace

Tensor covariance_sums_cpu(const Tensor& logprobs, const Tensor& advantages, const Tensor& mask) {
  const int64_t tokens = logprobs.numel();
  STD_TORCH_CHECK(
      logprobs.scalar_type() == ScalarType::Float && advantages.scalar_type() == ScalarType::Float &&
          mask.scalar_type() == ScalarType::Bool,
      "covariance_sums: logprobs and advantages must be fp32, mask bool");
  STD_TORCH_CHECK(
      logprobs.dim() == 1 && advantages.dim() == 1 && mask.dim() == 1 && advantages.numel() == tokens &&
          mask.numel() == tokens,
      "covariance_sums: logprobs, advantages and mask must be [T]");
  const Tensor x = torch::stable::contiguous(logprobs);
  const Tensor y = torch::stable::contiguous(advantages);
  const Tensor valid = torch::stable::contiguous(mask);
  Tensor sums = torch::stable::new_zeros(x, {2 * kSumLimbs + 1}, ScalarType::Long);

  const auto* xs = static_cast<const float*>(x.const_data_ptr());
  const auto* ys = static_cast<const float*>(y.const_data_ptr());
  const auto* keep = static_cast<const bool*>(valid.const_data_ptr());
  auto* limbs = static_cast<int64_t*>(sums.mutable_data_ptr());
  for (int64_t t = 0; t < tokens; ++t) {  // about 1 ns a token: one thread is enough
    if (!keep[t] || !std::isfinite(xs[t]) || !std::isfinite(ys[t])) continue;
    add_exactly(xs[t], limbs);
    add_exactly(ys[t], limbs + kSumLimbs);
    ++limbs[2 * kSumLimbs];
  }
  return sums;
}

}  // namespace pyrl
