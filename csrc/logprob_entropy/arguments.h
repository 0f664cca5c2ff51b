// What the CPU and the CUDA glue share: checked arguments as the plain structs that the kernels take.
#pragma once

#include <algorithm>
#include <optional>

#include <torch/csrc/stable/ops.h>

#include "logprob_entropy/rows.h"
#include "same_device.h"

namespace pyrl::rows {

inline Element element_of(const torch::stable::Tensor& logits) {
  using torch::headeronly::ScalarType;
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

inline torch::headeronly::ScalarType statistics_dtype(const torch::stable::Tensor& logits) {
  using torch::headeronly::ScalarType;
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_vector(
    const torch::stable::Tensor& tensor,
    const char* name,
    torch::headeronly::ScalarType dtype,
    int64_t tokens,
    const torch::stable::Tensor& others) {
  check_same_device("logprob_entropy", name, tensor, others);
  STD_TORCH_CHECK(
      tensor.dim() == 1 && tensor.numel() == tokens && tensor.scalar_type() == dtype &&
          (tokens <= 1 || tensor.stride(0) == 1),
      "logprob_entropy: ", name, " must be a contiguous [", tokens, "] of ", torch::headeronly::toString(dtype));
}

inline void check_stats(const torch::stable::Tensor& stats) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(
      stats.dim() == 3 && stats.size(2) == 4 && stats.is_contiguous() &&
          (stats.scalar_type() == ScalarType::Float || stats.scalar_type() == ScalarType::Double),
      "logprob_entropy: stats must be a contiguous fp32 or fp64 [shards, T, 4]");
}

// [1] or [T], fp64; the stride with which rows step through it.
inline int64_t temperature_stride(
    const torch::stable::Tensor& temperature, int64_t tokens, const torch::stable::Tensor& others) {
  check_same_device("logprob_entropy", "temperature", temperature, others);
  STD_TORCH_CHECK(
      temperature.dim() == 1 && temperature.scalar_type() == torch::headeronly::ScalarType::Double &&
          temperature.is_contiguous() && (temperature.numel() == 1 || temperature.numel() == tokens),
      "logprob_entropy: temperature must be a contiguous fp64 [1] or [T]");
  return temperature.numel() == 1 ? 0 : 1;
}

inline Problem problem_of(
    const torch::stable::Tensor& logits,
    const torch::stable::Tensor& labels,
    const torch::stable::Tensor& temperature,
    int64_t vocab_start,
    int64_t vocab_size) {
  STD_TORCH_CHECK(logits.dim() == 2, "logprob_entropy: logits must be [T, W]");
  const int64_t tokens = logits.size(0);
  const int64_t width = logits.size(1);
  STD_TORCH_CHECK(
      width <= 1 || logits.stride(1) == 1, "logprob_entropy: the last dimension of logits must have stride 1");
  check_vector(labels, "labels", torch::headeronly::ScalarType::Long, tokens, logits);
  return {
      element_of(logits),
      logits.const_data_ptr(),
      logits.stride(0),
      width,
      std::clamp<int64_t>(vocab_size - vocab_start, 0, width),
      vocab_start,
      static_cast<const int64_t*>(labels.const_data_ptr()),
      static_cast<const double*>(temperature.const_data_ptr()),
      temperature_stride(temperature, tokens, logits)};
}

inline Gradient gradient_of(
    const torch::stable::Tensor& grad_logprobs,
    const std::optional<torch::stable::Tensor>& grad_entropy,
    const torch::stable::Tensor& logits,
    const torch::stable::Tensor& entropy,
    const torch::stable::Tensor& lse,
    const torch::stable::Tensor& out) {
  using torch::headeronly::ScalarType;
  const int64_t tokens = logits.size(0);
  const ScalarType dtype = statistics_dtype(logits);
  check_vector(grad_logprobs, "grad_logprobs", dtype, tokens, logits);
  if (grad_entropy) check_vector(*grad_entropy, "grad_entropy", dtype, tokens, logits);
  check_vector(entropy, "entropy", dtype, tokens, logits);
  check_vector(lse, "lse", ScalarType::Double, tokens, logits);
  check_same_device("logprob_entropy", "the gradient", out, logits);
  const bool rounds = logits.scalar_type() == ScalarType::Float &&
                      (out.scalar_type() == ScalarType::BFloat16 || out.scalar_type() == ScalarType::Half);
  STD_TORCH_CHECK(
      out.dim() == 2 && out.size(0) == tokens && out.size(1) == logits.size(1) &&
          (out.size(1) <= 1 || out.stride(1) == 1) && (out.scalar_type() == logits.scalar_type() || rounds),
      "logprob_entropy: the gradient must have the shape of the logits, a last stride of 1, and their dtype or, for "
      "fp32 logits, bf16 or fp16");
  return {
      grad_logprobs.const_data_ptr(),
      grad_entropy ? grad_entropy->const_data_ptr() : nullptr,
      entropy.const_data_ptr(),
      static_cast<const double*>(lse.const_data_ptr()),
      element_of(out),
      out.mutable_data_ptr(),
      out.stride(0)};
}

}  // namespace pyrl::rows
