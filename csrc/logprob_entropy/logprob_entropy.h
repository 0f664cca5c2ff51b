// Log-probability of a label and entropy of the softmax, per row of vocabulary-parallel logits, and their gradient.
//
//   d_j = (x_j - m) / temperature,  m = max_j x_j
//   S = sum_j e^{d_j},  R = sum_j d_j e^{d_j}                              (R is centred: sum_j x_j e^{d_j} cancels)
//   lse = m / temperature + ln S
//   logprob = (x_y - m) / temperature - ln S
//   entropy = ln S - R / S
//   dx_j = (1 / temperature) { g_l [j = y] - p_j [ g_l + g_h (ln p_j + entropy) ] },  p_j = e^{x_j / temperature - lse}
//
// A shard r of the vocabulary gives (m_r, S_r, R_r, t_r), t_r = x_y where it owns the label and 0 elsewhere. Shards merge
// in rank order, those with m_r = -inf skipped: with M = max m_r and c_r = (m_r - M) / temperature,
//   S = sum_r e^{c_r} S_r,  R = sum_r e^{c_r} (R_r + c_r S_r),  x_y = sum_r t_r.
//
// logits [T, W] float of any width, last stride 1, columns vocab_start .. vocab_start + W of the vocabulary; columns at
// or above vocab_size are padding: never read, zero gradient. labels int64 [T], global; kIgnore: the row is not read,
// outputs and gradient are 0. temperature fp64 [1] or [T]. Statistics, outputs and upstream gradients are fp32, or fp64
// for fp64 logits; lse is fp64, because at |x| = 1e4 its fp32 rounding alone would change p by 5e-4.
// S is fp32: where all but the largest logit add less than 2^-24 to its 1, S is 1, the log-prob of that label 0 and its
// gradient too. So logprob and 1 - p have an absolute error of some 2^-24 near p = 1, as with fp32 log-softmax, and no
// relative precision; the other columns' p_j has both.
// Temperatures lie in [1e-6, 1e6]. Label range and temperatures are checked in pyrl/ops; shapes and dtypes here too. The CUDA kernels and their budget:
// logprob_entropy_kernels.h.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>

#include <torch/csrc/stable/tensor.h>

namespace pyrl {

// -> [T, 4]: m, S, R, t of this shard. A temperature outside [1e-6, 1e6], or on CUDA a label out of range, gives S = NaN:
// on CUDA nobody has waited to check them.
torch::stable::Tensor logprob_entropy_stats_cpu(
    const torch::stable::Tensor& logits,
    const torch::stable::Tensor& labels,
    const torch::stable::Tensor& temperature,
    int64_t vocab_start,
    int64_t vocab_size);

// stats [shards, T, 4] -> [T, 4]: those of the shards together, as one.
torch::stable::Tensor logprob_entropy_combine_cpu(
    const torch::stable::Tensor& stats, const torch::stable::Tensor& temperature);

// stats [shards, T, 4] -> logprobs [T], entropy [T], lse fp64 [T], bad_row int64 []: the first row that holds NaN, +inf,
// or nothing but -inf; -1 if there is none.
std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor>
logprob_entropy_merge_cpu(
    const torch::stable::Tensor& stats,
    const torch::stable::Tensor& labels,
    const torch::stable::Tensor& temperature);

// -> gradient of the logits, [T, W], contiguous. Without grad_entropy, its term is left out.
torch::stable::Tensor logprob_entropy_backward_cpu(
    const torch::stable::Tensor& grad_logprobs,
    const std::optional<torch::stable::Tensor>& grad_entropy,
    const torch::stable::Tensor& logits,
    const torch::stable::Tensor& labels,
    const torch::stable::Tensor& temperature,
    const torch::stable::Tensor& entropy,
    const torch::stable::Tensor& lse,
    int64_t vocab_start,
    int64_t vocab_size);

// The same, written over the logits.
void logprob_entropy_backward_inplace_cpu(
    const torch::stable::Tensor& grad_logprobs,
    const std::optional<torch::stable::Tensor>& grad_entropy,
    const torch::stable::Tensor& logits,
    const torch::stable::Tensor& labels,
    const torch::stable::Tensor& temperature,
    const torch::stable::Tensor& entropy,
    const torch::stable::Tensor& lse,
    int64_t vocab_start,
    int64_t vocab_size);

// The same, written to `out` [T, W], last stride 1, of the dtype of the logits or, for fp32 logits, rounded to bf16 or
// fp16: a GEMM's input.
void logprob_entropy_backward_out_cpu(
    const torch::stable::Tensor& grad_logprobs,
    const std::optional<torch::stable::Tensor>& grad_entropy,
    const torch::stable::Tensor& logits,
    const torch::stable::Tensor& labels,
    const torch::stable::Tensor& temperature,
    const torch::stable::Tensor& entropy,
    const torch::stable::Tensor& lse,
    int64_t vocab_start,
    int64_t vocab_size,
    const torch::stable::Tensor& out);

// The same on CUDA, of bf16, fp16 or fp32 logits; bad_row stays there.
torch::stable::Tensor logprob_entropy_stats_cuda(
    const torch::stable::Tensor& logits,
    const torch::stable::Tensor& labels,
    const torch::stable::Tensor& temperature,
    int64_t vocab_start,
    int64_t vocab_size);

torch::stable::Tensor logprob_entropy_combine_cuda(
    const torch::stable::Tensor& stats, const torch::stable::Tensor& temperature);

std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor>
logprob_entropy_merge_cuda(
    const torch::stable::Tensor& stats,
    const torch::stable::Tensor& labels,
    const torch::stable::Tensor& temperature);

torch::stable::Tensor logprob_entropy_backward_cuda(
    const torch::stable::Tensor& grad_logprobs,
    const std::optional<torch::stable::Tensor>& grad_entropy,
    const torch::stable::Tensor& logits,
    const torch::stable::Tensor& labels,
    const torch::stable::Tensor& temperature,
    const torch::stable::Tensor& entropy,
    const torch::stable::Tensor& lse,
    int64_t vocab_start,
    int64_t vocab_size);

void logprob_entropy_backward_inplace_cuda(
    const torch::stable::Tensor& grad_logprobs,
    const std::optional<torch::stable::Tensor>& grad_entropy,
    const torch::stable::Tensor& logits,
    const torch::stable::Tensor& labels,
    const torch::stable::Tensor& temperature,
    const torch::stable::Tensor& entropy,
    const torch::stable::Tensor& lse,
    int64_t vocab_start,
    int64_t vocab_size);

void logprob_entropy_backward_out_cuda(
    const torch::stable::Tensor& grad_logprobs,
    const std::optional<torch::stable::Tensor>& grad_entropy,
    const torch::stable::Tensor& logits,
    const torch::stable::Tensor& labels,
    const torch::stable::Tensor& temperature,
    const torch::stable::Tensor& entropy,
    const torch::stable::Tensor& lse,
    int64_t vocab_start,
    int64_t vocab_size,
    const torch::stable::Tensor& out);

}  // namespace pyrl
