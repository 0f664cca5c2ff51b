// Keys of tokens and the search for the k-th of them (selection.h), free of torch: the CPU and the CUDA kernels both call
// these functions and differ only in who calls them for which token.
#pragma once

#include <bit>
#include <cstdint>

#include "counter/mix.h"

namespace pyrl::selection {

inline constexpr int kDigits = 12;      // of a key, 8 bits each, most significant first: one round each
inline constexpr int kOrderDigits = 4;  // of which order the covariance
inline constexpr int kBins = 256;
inline constexpr int kCounts = kBins + 2;  // what a round adds over ranks: the bins, and n in two parts
inline constexpr int kLowBits = 8;         // of n, per addend: neither part can wrap below 2^23 addends
inline constexpr int64_t kMaxValid = (int64_t{1} << 31) - 1;  // largest n, so that no int32 bin can wrap
inline constexpr int64_t kSameUid = 1;
inline constexpr int64_t kTooManyTokens = 2;

// On the device between rounds; int64 [kStateWords] to torch. All 0 before the first round.
struct State {
  uint64_t order, mix;  // the threshold, a key: the digits found so far, then zeros, or ones once it is decided
  int64_t remaining;    // how many tokens are still to be taken of those whose key begins like the threshold
  int64_t decided;      // 1: the selected tokens are those whose key is at most the threshold
  int64_t valid;        // n
  int64_t same_uid;     // how many tokens share the threshold as their key, where not all of them can be taken; else 0
  int64_t errors;       // kSameUid, kTooManyTokens: bits of pyrl/ops/device_flag.py
};
inline constexpr int kStateWords = sizeof(State) / sizeof(int64_t);

// ratio as a fraction with n numerator / denominator exact to the floor for every n <= kMaxValid (pyrl/ops/selection.py)
struct Ratio {
  int64_t numerator, denominator;  // 0 <= numerator <= denominator <= kMaxValid
};

struct Tokens {
  const float* cov;
  const bool* mask;
  const bool* eligible;  // or null: all are
  const int64_t* uids;
  int64_t count;
};

struct Query {
  float lower, upper;  // candidates lie strictly between them
  uint64_t seed;
  bool by_covariance;  // false: the order part of every key is 0, and its rounds are left out
};

constexpr int first_round(bool by_covariance) {
  return by_covariance ? 0 : kOrderDigits;
}

// NaN lies in no band, nor does infinity: the bounds are at most infinite.
constexpr bool in_band(float cov, const Query& query) {
  return cov > query.lower && cov < query.upper;
}

// 32 bits that are smaller for a larger covariance; -0 equals 0.
constexpr uint32_t descending(float cov) {
  const uint32_t bits = std::bit_cast<uint32_t>(cov);
  if (bits == 0x80000000u) return 0x7FFFFFFFu;
  return bits >> 31 ? bits : 0x7FFFFFFFu - bits;
}

constexpr uint32_t order_of(float cov, const Query& query) {
  return query.by_covariance ? descending(cov) : 0;
}

// Bits of the word (order or mix) below the digit of `round`.
constexpr int shift_of(int round) {
  return round < kOrderDigits ? 24 - 8 * round : 88 - 8 * round;
}

// The digit that `round` counts of a candidate's key, or -1 where the key does not begin like the threshold. The uid is
// read only where the covariance leaves the question open.
constexpr int counted_digit(float cov, const int64_t* uid, const Query& query, const State& state, int round) {
  const int shift = shift_of(round);
  const uint64_t order = order_of(cov, query);
  if (round < kOrderDigits) return (order ^ state.order) >> shift >> 8 ? -1 : static_cast<int>((order >> shift) & 0xFF);
  if (order != state.order) return -1;
  const uint64_t mixed = mix(query.seed, static_cast<uint64_t>(*uid));
  return (mixed ^ state.mix) >> shift >> 8 ? -1 : static_cast<int>((mixed >> shift) & 0xFF);
}

// Whether a candidate is among the k.
constexpr bool selected(float cov, const int64_t* uid, const Query& query, const State& state) {
  const uint64_t order = order_of(cov, query);
  if (order != state.order) return order < state.order;
  return state.mix == ~uint64_t{0} || mix(query.seed, static_cast<uint64_t>(*uid)) <= state.mix;
}

// Entry kBins + part of the counts for `valid` tokens.
constexpr int32_t part_of(int64_t valid, int part) {
  return static_cast<int32_t>(part == 0 ? valid & ((1 << kLowBits) - 1) : valid >> kLowBits);
}

// k, from n and the number of candidates over all ranks. n numerator < 2^62.
constexpr int64_t quota(int64_t valid, int64_t candidates, const Ratio& ratio) {
  const uint64_t share = static_cast<uint64_t>(valid) * static_cast<uint64_t>(ratio.numerator) /
                         static_cast<uint64_t>(ratio.denominator);
  const int64_t k = share < 1 ? 1 : static_cast<int64_t>(share);
  return k < candidates ? k : candidates;
}

// Begins the search: `counts` [kCounts] of the first round, `candidates` the sum of its bins.
constexpr void start(State& state, const int32_t* counts, int64_t candidates, const Ratio& ratio) {
  state.valid = counts[kBins] + (static_cast<int64_t>(counts[kBins + 1]) << kLowBits);
  if (state.valid > kMaxValid) state.errors |= kTooManyTokens;
  state.remaining = quota(state.valid, candidates, ratio);
}

// Fixes the digit of `round`: the k-th key lies in bin `digit`, `here` keys are in it, `before` in the bins below.
constexpr void settle(State& state, int round, int digit, int64_t before, int64_t here) {
  state.remaining -= before;
  state.decided = state.remaining == here || round == kDigits - 1;
  if (state.remaining != here && round == kDigits - 1) {
    state.same_uid = here;
    state.errors |= kSameUid;
  }
  const uint64_t below = state.decided ? (uint64_t{1} << shift_of(round)) - 1 : 0;
  const uint64_t found = (static_cast<uint64_t>(digit) << shift_of(round)) | below;
  if (round < kOrderDigits) {
    state.order |= found;
    state.mix = state.decided ? ~uint64_t{0} : 0;
  } else {
    state.mix |= found;
  }
}

}  // namespace pyrl::selection
