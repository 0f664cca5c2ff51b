// Exact selection of k tokens over a data-parallel group without gathering them, and without the host.
//
//   candidates  tokens of `mask` (and of `eligible`) whose covariance is finite and strictly inside (lower, upper)
//   key         96 bits: the covariance's order (largest first, -0 = 0), then mix(seed, uid), which no two tokens share;
//               with by_covariance false the order part is 0
//   k           min(candidates, max(1, floor(ratio n))), n tokens of `mask`, over all ranks
//   selected    the k candidates of smallest key: the k largest covariances, ties drawn by uid (KL-Cov, arXiv 2505.22617
//               eq. 13), or k candidates drawn uniformly (Clip-Cov, eq. 11)
//
// Radix selection: round r counts digit r, 8 bits, of the candidates whose key begins with the digits found so far; one
// integer all-reduce adds the counts of all ranks; the bin in which the k-th key lies is the next digit of the threshold.
// Once the bin holds just as many keys as are still wanted, the threshold is decided and later rounds find nothing to do:
// they still run, since only the device knows, so that the work is the same launches every time and a CUDA graph can hold
// it. Counts are integers, so order and partition change nothing. Digits of 8 bits are what 16 KB of all-reduces allow
// (12 rounds of 1032 bytes, 12.4 KB; 8 rounds without the order): 11-bit digits would need 9 rounds but 74 KB, and no
// mixture of widths within 4096 bins covers 96 bits in fewer rounds than 12.
//
// CUDA, budget for 3 million tokens on an H100 (3.0 TB/s of copy bandwidth, 2 to 3 us for a small kernel in a graph):
//   a round that counts   4 + 1 bytes a token, 15 MB, 5 us, and 8 more where the uid is asked (the order is tied, or there
//                         is none); from L2 less. About 15 integer instructions a token, 2 us, 50 with the mix, 7 us
//   a decided round       one load and a return, as an `advance` costs anyway: 12 x 2 x 2.5 us = 60 us for all launches
//   mark                  4 + 1 bytes read, 1 written, 18 MB, 6 us
// Continuous covariances are decided in 4 rounds (4 x 5 us), a draw in 2 or 3 (x 14 us): about 90 us. Covariances that all
// tie cost 8 rounds of 14 us more. Nothing is kept per token between rounds.
#pragma once

#include <cstdint>
#include <optional>

#include <torch/csrc/stable/tensor.h>

namespace pyrl {

// cov fp32 [T], mask and eligible bool [T], token_uids int64 [T]; state int64 [kStateWords], all 0 before the first
// round; adds to counts int32 [kCounts], all 0 before.
void selection_histogram_cpu(
    const torch::stable::Tensor& cov,
    const torch::stable::Tensor& mask,
    const std::optional<torch::stable::Tensor>& eligible,
    const torch::stable::Tensor& token_uids,
    double lower,
    double upper,
    bool by_covariance,
    int64_t seed,
    int64_t round,
    const torch::stable::Tensor& state,
    const torch::stable::Tensor& counts);
void selection_histogram_cuda(
    const torch::stable::Tensor& cov,
    const torch::stable::Tensor& mask,
    const std::optional<torch::stable::Tensor>& eligible,
    const torch::stable::Tensor& token_uids,
    double lower,
    double upper,
    bool by_covariance,
    int64_t seed,
    int64_t round,
    const torch::stable::Tensor& state,
    const torch::stable::Tensor& counts);

// From the counts of all ranks the next digit of the threshold; numerator / denominator: the ratio (key.h, Ratio).
void selection_advance_cpu(
    const torch::stable::Tensor& counts,
    bool by_covariance,
    int64_t round,
    int64_t numerator,
    int64_t denominator,
    const torch::stable::Tensor& state);
void selection_advance_cuda(
    const torch::stable::Tensor& counts,
    bool by_covariance,
    int64_t round,
    int64_t numerator,
    int64_t denominator,
    const torch::stable::Tensor& state);

// -> bool [T]
torch::stable::Tensor selection_mark_cpu(
    const torch::stable::Tensor& cov,
    const torch::stable::Tensor& mask,
    const std::optional<torch::stable::Tensor>& eligible,
    const torch::stable::Tensor& token_uids,
    double lower,
    double upper,
    bool by_covariance,
    int64_t seed,
    const torch::stable::Tensor& state);
torch::stable::Tensor selection_mark_cuda(
    const torch::stable::Tensor& cov,
    const torch::stable::Tensor& mask,
    const std::optional<torch::stable::Tensor>& eligible,
    const torch::stable::Tensor& token_uids,
    double lower,
    double upper,
    bool by_covariance,
    int64_t seed,
    const torch::stable::Tensor& state);

}  // namespace pyrl
