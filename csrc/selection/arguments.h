// What the CPU and the CUDA glue share: checked, contiguous arguments and the plain pointers the kernels take.
#pragma once

#include <cmath>
#include <limits>
#include <optional>

#include <torch/csrc/stable/ops.h>

#include "same_device.h"
#include "selection/key.h"

namespace pyrl::selection {

inline void check(
    const torch::stable::Tensor& tensor,
    const char* name,
    torch::headeronly::ScalarType dtype,
    int64_t length,
    const torch::stable::Tensor& others) {
  check_same_device("selection", name, tensor, others);
  STD_TORCH_CHECK(
      tensor.dim() == 1 && tensor.numel() == length && tensor.scalar_type() == dtype,
      "selection: ", name, " must be a [", length, "] of ", torch::headeronly::toString(dtype));
}

// The tensors of one call, contiguous and kept alive, and the pointers into them.
class Arguments {
 public:
  Arguments(
      const torch::stable::Tensor& cov,
      const torch::stable::Tensor& mask,
      const std::optional<torch::stable::Tensor>& eligible,
      const torch::stable::Tensor& token_uids)
      : cov_(torch::stable::contiguous(cov)),
        mask_(torch::stable::contiguous(mask)),
        eligible_(torch::stable::contiguous(eligible ? *eligible : mask)),
        all_eligible_(!eligible),
        uids_(torch::stable::contiguous(token_uids)) {
    using torch::headeronly::ScalarType;
    const int64_t tokens = cov.numel();
    check(cov, "cov", ScalarType::Float, tokens, cov);
    check(mask, "mask", ScalarType::Bool, tokens, cov);
    check(eligible_, "eligible", ScalarType::Bool, tokens, cov);
    check(token_uids, "token_uids", ScalarType::Long, tokens, cov);
  }

  Tokens tokens() const {
    return {
        static_cast<const float*>(cov_.const_data_ptr()),
        static_cast<const bool*>(mask_.const_data_ptr()),
        all_eligible_ ? nullptr : static_cast<const bool*>(eligible_.const_data_ptr()),
        static_cast<const int64_t*>(uids_.const_data_ptr()),
        cov_.numel()};
  }

  const torch::stable::Tensor& cov() const { return cov_; }

 private:
  torch::stable::Tensor cov_, mask_, eligible_;
  bool all_eligible_;
  torch::stable::Tensor uids_;
};

// The largest float that is not above `bound`: an fp32 number is above one just where it is above the other.
inline float rounded_down(double bound) {
  const float nearest = static_cast<float>(bound);
  return nearest > bound ? std::nextafter(nearest, -std::numeric_limits<float>::infinity()) : nearest;
}

inline Query query_of(double lower, double upper, bool by_covariance, int64_t seed) {
  return {rounded_down(lower), -rounded_down(-upper), static_cast<uint64_t>(seed), by_covariance};
}

inline State* state_of(const torch::stable::Tensor& state, const torch::stable::Tensor& others) {
  check(state, "state", torch::headeronly::ScalarType::Long, kStateWords, others);
  STD_TORCH_CHECK(state.is_contiguous(), "selection: state must be contiguous");
  return static_cast<State*>(state.mutable_data_ptr());
}

inline int32_t* counts_of(const torch::stable::Tensor& counts, const torch::stable::Tensor& others) {
  check(counts, "counts", torch::headeronly::ScalarType::Int, kCounts, others);
  STD_TORCH_CHECK(counts.is_contiguous(), "selection: counts must be contiguous");
  return static_cast<int32_t*>(counts.mutable_data_ptr());
}

inline int round_of(int64_t round, bool by_covariance) {
  STD_TORCH_CHECK(
      round >= first_round(by_covariance) && round < kDigits, "selection: got round ", round, ", wanted one in [",
      first_round(by_covariance), ", ", kDigits, ")");
  return static_cast<int>(round);
}

inline Ratio ratio_of(int64_t numerator, int64_t denominator) {
  STD_TORCH_CHECK(
      0 <= numerator && numerator <= denominator && 0 < denominator && denominator <= kMaxValid,
      "selection: got a ratio of ", numerator, " / ", denominator, ", wanted a fraction in [0, 1] below 2^31");
  return {numerator, denominator};
}

}  // namespace pyrl::selection
