// What the CPU and the CUDA glue share: checked, contiguous arguments and the plain pointers the kernels take.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "same_device.h"
#include "token_covariance/tokens.h"

namespace pyrl::covariance {

// The tensors of one call, contiguous and kept alive, and the pointers into them.
class Arguments {
 public:
  Arguments(
      const torch::stable::Tensor& logprobs,
      const torch::stable::Tensor& advantages,
      const torch::stable::Tensor& mask)
      : logprobs_(torch::stable::contiguous(logprobs)),
        advantages_(torch::stable::contiguous(advantages)),
        mask_(torch::stable::contiguous(mask)) {
    using torch::headeronly::ScalarType;
    check_same_device("token_covariance", "advantages", advantages, logprobs);
    check_same_device("token_covariance", "mask", mask, logprobs);
    STD_TORCH_CHECK(
        logprobs.scalar_type() == ScalarType::Float && advantages.scalar_type() == ScalarType::Float &&
            mask.scalar_type() == ScalarType::Bool,
        "token_covariance: logprobs and advantages must be fp32, mask bool");
    STD_TORCH_CHECK(
        logprobs.dim() == 1 && advantages.dim() == 1 && mask.dim() == 1 && advantages.numel() == logprobs.numel() &&
            mask.numel() == logprobs.numel(),
        "token_covariance: logprobs, advantages and mask must be [T]");
  }

  Tokens tokens() const {
    return {
        static_cast<const float*>(logprobs_.const_data_ptr()),
        static_cast<const float*>(advantages_.const_data_ptr()),
        static_cast<const bool*>(mask_.const_data_ptr()),
        logprobs_.numel()};
  }

  torch::stable::Tensor new_sums() const {
    return torch::stable::new_zeros(logprobs_, {kSums}, torch::headeronly::ScalarType::Long);
  }

  torch::stable::Tensor new_result() const { return torch::stable::new_empty(logprobs_, {logprobs_.numel()}); }

 private:
  torch::stable::Tensor logprobs_, advantages_, mask_;
};

inline const int64_t* sums_of(const torch::stable::Tensor& sums, const torch::stable::Tensor& logprobs) {
  check_same_device("token_covariance", "sums", sums, logprobs);
  STD_TORCH_CHECK(
      sums.dim() == 1 && sums.numel() == kSums && sums.scalar_type() == torch::headeronly::ScalarType::Long &&
          sums.is_contiguous(),
      "token_covariance: sums must be a contiguous int64 [", kSums, "]");
  return static_cast<const int64_t*>(sums.const_data_ptr());
}

}  // namespace pyrl::covariance
