// Per-token surrogate loss of the policy and its derivative with respect to the log-prob, in one pass.
//
//   d = logprob - old_logprob,  r = e^d,  A = advantage, constants
//   s = max(-r A, -clip(r, ratio_min, ratio_max) A)                     PPO (arXiv 1707.06347) eq. 7
//   s = min(s, -clip_c A) where A < 0                                   dual clip (arXiv 1912.09729) eq. 5
//   loss = s;  d loss / d logprob = -r A where no bound binds, else 0
//   on selected tokens: loss = 0 without gradient (drop_selected)       Clip-Cov (arXiv 2505.22617) eq. 12
//                       or loss = s + kl_coef |d|, gradient + kl_coef sign(d), the latter 0 where |d| < 1e-6
//                                                                       KL-Cov (arXiv 2505.22617) eq. 14
// A bound binds where it makes the loss strictly larger (smaller for clip_c). Bounds 0 and inf are none. Masked tokens
// are not read: loss, gradient and sums 0.
//
// logprobs, advantages fp32 or fp64 [T]; old_logprobs the same, or none: it is logprobs, so that r is exactly 1. mask
// bool [T]; selected bool [T], or none.
// -> loss [T], gradient [T], binds bool [T] (a bound binds), sums fp64 [kSums]
//
// Computed in fp64 whatever the dtype, so that one rounding is left. A token of fp32 moves 23 bytes and costs at most
// 220 fp64 instructions (sm_90, counted): at 64 of them a clock an H100's multiprocessor needs 3.4 clocks, twice what
// its share of the memory rate takes, and all of them 45 us for 3 million tokens. At the size of a micro-batch the two
// launches are what counts.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>

#include <torch/csrc/stable/tensor.h>

namespace pyrl {

std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor> policy_loss_cpu(
    const torch::stable::Tensor& logprobs,
    const std::optional<torch::stable::Tensor>& old_logprobs,
    const torch::stable::Tensor& advantages,
    const torch::stable::Tensor& mask,
    const std::optional<torch::stable::Tensor>& selected,
    double ratio_min,
    double ratio_max,
    double clip_c,
    bool drop_selected,
    double kl_coef);

std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor> policy_loss_cuda(
    const torch::stable::Tensor& logprobs,
    const std::optional<torch::stable::Tensor>& old_logprobs,
    const torch::stable::Tensor& advantages,
    const torch::stable::Tensor& mask,
    const std::optional<torch::stable::Tensor>& selected,
    double ratio_min,
    double ratio_max,
    double clip_c,
    bool drop_selected,
    double kl_coef);

}  // namespace pyrl
