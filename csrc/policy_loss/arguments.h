// What the CPU and the CUDA glue share: checked, contiguous arguments, the outputs, and the plain pointers to both.
#pragma once

#include <optional>
#include <tuple>

#include <torch/csrc/stable/ops.h>

#include "policy_loss/token.h"
#include "same_device.h"

namespace pyrl::surrogate {

class Arguments {
 public:
  Arguments(
      const torch::stable::Tensor& logprobs,
      const std::optional<torch::stable::Tensor>& old_logprobs,
      const torch::stable::Tensor& advantages,
      const torch::stable::Tensor& mask,
      const std::optional<torch::stable::Tensor>& selected)
      : logprobs_(torch::stable::contiguous(logprobs)),
        old_logprobs_(old_logprobs ? torch::stable::contiguous(*old_logprobs) : logprobs_),
        advantages_(torch::stable::contiguous(advantages)),
        mask_(torch::stable::contiguous(mask)),
        selected_(selected ? torch::stable::contiguous(*selected) : mask_),
        selects_(selected.has_value()),
        loss(torch::stable::new_empty(logprobs_, {logprobs.numel()})),
        gradient(torch::stable::new_empty(logprobs_, {logprobs.numel()})),
        binds(torch::stable::new_empty(logprobs_, {logprobs.numel()}, ScalarType::Bool)),
        sums(torch::stable::new_empty(logprobs_, {kSums}, ScalarType::Double)) {
    STD_TORCH_CHECK(
        logprobs.scalar_type() == ScalarType::Float || logprobs.scalar_type() == ScalarType::Double,
        "policy_loss: logprobs must be fp32 or fp64");
    check(logprobs_, "logprobs", logprobs.scalar_type());
    check(old_logprobs_, "old_logprobs", logprobs.scalar_type());
    check(advantages_, "advantages", logprobs.scalar_type());
    check(mask_, "mask", ScalarType::Bool);
    check(selected_, "selected", ScalarType::Bool);
  }

  bool is_double() const { return logprobs_.scalar_type() == ScalarType::Double; }
  int64_t count() const { return logprobs_.numel(); }
  double* sums_data() const { return static_cast<double*>(sums.mutable_data_ptr()); }

  template <typename C>
  Tokens<C> tokens() const {
    return {
        static_cast<const C*>(logprobs_.const_data_ptr()),
        static_cast<const C*>(old_logprobs_.const_data_ptr()),
        static_cast<const C*>(advantages_.const_data_ptr()),
        static_cast<const bool*>(mask_.const_data_ptr()),
        selects_ ? static_cast<const bool*>(selected_.const_data_ptr()) : nullptr,
        static_cast<C*>(loss.mutable_data_ptr()),
        static_cast<C*>(gradient.mutable_data_ptr()),
        static_cast<bool*>(binds.mutable_data_ptr()),
        count()};
  }

 private:
  using ScalarType = torch::headeronly::ScalarType;

  void check(const torch::stable::Tensor& tensor, const char* name, ScalarType dtype) const {
    check_same_device("policy_loss", name, tensor, logprobs_);
    STD_TORCH_CHECK(
        tensor.dim() == 1 && tensor.numel() == count() && tensor.scalar_type() == dtype,
        "policy_loss: ", name, " must be a [", count(), "] of ", torch::headeronly::toString(dtype));
  }

  torch::stable::Tensor logprobs_, old_logprobs_, advantages_, mask_, selected_;
  bool selects_;

 public:
  torch::stable::Tensor loss, gradient, binds, sums;
};

}  // namespace pyrl::surrogate
