// The row kernels as plain pointers: free of torch, compiled once per instruction set (rows_generic.cpp, rows_avx2.cpp).
#pragma once

#include <cstdint>

namespace pyrl::rows {

inline constexpr int64_t kIgnore = -100;

// Beyond these, 1 / temperature times a logit, a gradient or log2(e) leaves the range of fp32. They are fp32 numbers, so
// that the bounds themselves fit, whether a temperature comes as fp32 or fp64; pyrl/ops/logprob_entropy.py names them too.
inline constexpr double kMinTemperature = 1e-6f;
inline constexpr double kMaxTemperature = 1e6f;

// Not so where it is NaN.
constexpr bool temperature_fits(double temperature) {
  return temperature >= kMinTemperature && temperature <= kMaxTemperature;
}

enum class Element { kFloat, kDouble, kBFloat16, kHalf };

struct Problem {
  Element element;
  const void* logits;          // [T, width], row_stride elements between rows
  int64_t row_stride;
  int64_t width;               // columns of this shard
  int64_t valid;               // of which the first `valid` are not padding
  int64_t vocab_start;
  const int64_t* labels;       // [T], global
  const double* temperature;   // [T], temperature_stride 1, or [1], temperature_stride 0
  int64_t temperature_stride;
};

// Pointers below are float*, or double* for Element::kDouble.
struct Gradient {
  const void* grad_logprobs;   // [T]
  const void* grad_entropy;    // [T], or null: it is 0
  const void* entropy;         // [T]
  const double* lse;           // [T]
  Element out_element;         // that of the logits, or kBFloat16 or kHalf for kFloat
  void* out;                   // [T, width]; may be the logits themselves where the elements are the same
  int64_t out_stride;
};

using StatsFunction = void (*)(const Problem&, void* stats, int64_t begin, int64_t end);
using BackwardFunction = void (*)(const Problem&, const Gradient&, int64_t begin, int64_t end);

namespace generic {
void stats(const Problem&, void* stats, int64_t begin, int64_t end);
void backward(const Problem&, const Gradient&, int64_t begin, int64_t end);
}  // namespace generic

namespace avx2 {
void stats(const Problem&, void* stats, int64_t begin, int64_t end);
void backward(const Problem&, const Gradient&, int64_t begin, int64_t end);
}  // namespace avx2

}  // namespace pyrl::rows
