#include "logprob_entropy/logprob_entropy_kernels.h"

#include <cmath>
#include <cstdint>
#include <limits>

#include "device.cuh"
#include "logprob_entropy/merge.h"

namespace pyrl::rows {

namespace {

using device::Bits16;

constexpr int kThreads = 128;
constexpr int kBlocks = 8;  // on a multiprocessor: at most 64 registers
constexpr int kWarps = kThreads / device::kWarp;
constexpr int kLoads = 4;  // of 16 bytes, in flight in a thread

constexpr double kLog2E = 1.44269504088896340736;
constexpr double kLn2 = 0.693147180559945309417;
constexpr float kLowest = -std::numeric_limits<float>::max();
constexpr float kCutoff = -150.0f;  // exp2 of it is 0, and a bound keeps 0 * -inf away

// The element types: kPerWord to a word of 32 bits.
struct BFloat16 {
  using Storage = uint16_t;
  static constexpr int kPerWord = 2;
  static constexpr uint32_t kNothing = 0xFF80FF80u;  // -inf, twice
  PYRL_DEVICE static float get(uint32_t word, int i) { return device::bits_float(i == 0 ? word << 16 : word & 0xFFFF0000u); }
  PYRL_DEVICE static uint32_t max(uint32_t a, uint32_t b) { return device::max_bf16(a, b); }
  PYRL_DEVICE static uint32_t pack(const float* x) { return device::pack_bf16(x[0], x[1]); }
};

struct Half {
  using Storage = uint16_t;
  static constexpr int kPerWord = 2;
  static constexpr uint32_t kNothing = 0xFC00FC00u;
  PYRL_DEVICE static float get(uint32_t word, int i) { return i == 0 ? device::low_half(word) : device::high_half(word); }
  PYRL_DEVICE static uint32_t max(uint32_t a, uint32_t b) { return device::max_half(a, b); }
  PYRL_DEVICE static uint32_t pack(const float* x) { return device::pack_half(x[0], x[1]); }
};

struct Float {
  using Storage = uint32_t;
  static constexpr int kPerWord = 1;
  static constexpr uint32_t kNothing = 0xFF800000u;
  PYRL_DEVICE static float get(uint32_t word, int) { return device::bits_float(word); }
  PYRL_DEVICE static uint32_t max(uint32_t a, uint32_t b) { return device::bits_float(a) < device::bits_float(b) ? b : a; }
  PYRL_DEVICE static uint32_t pack(const float* x) { return device::float_bits(x[0]); }
};

template <typename E>
constexpr int kPerLoad = 4 * E::kPerWord;

template <typename E>
using Storage = typename E::Storage;

template <typename E>
PYRL_DEVICE float load1(const Storage<E>* from) { return E::get(*from, 0); }

template <typename E>
PYRL_DEVICE void store1(Storage<E>* to, float x) {
  const float pair[2] = {x, 0.0f};
  *to = static_cast<Storage<E>>(E::pack(pair));
}

// A range of columns [begin, end) of a row: `head` scalars up to a 16-byte boundary, `vectors` of kPerLoad, then scalars.
template <typename E>
struct Span {
  int64_t begin, body, vectors, tail, end;

  PYRL_DEVICE Span(const Storage<E>* row, int64_t first, int64_t last) : begin(first), end(last) {
    const int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(row + first) % 16 / sizeof(Storage<E>));
    body = first + (past == 0 ? 0 : kPerLoad<E> - past);
    if (body > last) body = last;
    vectors = (last - body) / kPerLoad<E>;
    tail = body + vectors * kPerLoad<E>;
  }
};

// --- statistics ------------------------------------------------------------------------------------------------------

// m, and S and R against it, R in bits: sum of d e^d with d = (x - m) log2(e) / temperature.
struct Sums {
  float m = kLowest, s = 0.0f, r = 0.0f;

  PYRL_DEVICE void raise(float new_m, float scale) {
    const float d = device::max_nan((m - new_m) * scale, kCutoff);
    const float f = device::exp2(d);
    r = f * (r + d * s);
    s *= f;
    m = new_m;
  }
};

PYRL_DEVICE float larger(float a, float b) { return b > a ? b : a; }  // a where b is NaN

template <typename E>
PYRL_DEVICE void add_one(Sums& sums, const Storage<E>* from, float scale) {
  const float x = load1<E>(from);
  sums.raise(larger(sums.m, x), scale);
  const float d = device::max_nan((x - sums.m) * scale, kCutoff);
  const float e = device::exp2(d);
  sums.s += e;
  sums.r += d * e;
}

template <typename E>
PYRL_DEVICE void add(Sums& sums, const Bits16 (&raw)[kLoads], float scale) {
  uint32_t largest = E::kNothing;
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
#pragma unroll
    for (int w = 0; w < 4; ++w) largest = E::max(largest, raw[u].word[w]);
  }
  float m = sums.m;
#pragma unroll
  for (int i = 0; i < E::kPerWord; ++i) m = larger(m, E::get(largest, i));
  sums.raise(m, scale);
  float s[kLoads] = {}, r[kLoads] = {};
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
#pragma unroll
      for (int i = 0; i < E::kPerWord; ++i) {
        const float d = device::max_nan((E::get(raw[u].word[w], i) - m) * scale, kCutoff);
        const float e = device::exp2(d);
        s[u] += e;
        r[u] += d * e;
      }
    }
  }
  sums.s += (s[0] + s[1]) + (s[2] + s[3]);
  sums.r += (r[0] + r[1]) + (r[2] + r[3]);
}

// Of the columns of this thread.
template <typename E>
PYRL_DEVICE Sums thread_sums(const Storage<E>* x, int64_t columns, float scale) {
  const Span<E> span(x, 0, columns);
  const int thread = device::thread_index();
  Sums sums;
  if (thread < span.body) add_one<E>(sums, x + thread, scale);
  if (span.tail + thread < span.end) add_one<E>(sums, x + span.tail + thread, scale);
  const Storage<E>* body = x + span.body;
  for (int64_t first = thread; first < span.vectors; first += kLoads * kThreads) {
    Bits16 raw[kLoads];
    if (first + (kLoads - 1) * kThreads < span.vectors) {
#pragma unroll
      for (int u = 0; u < kLoads; ++u) raw[u] = device::load16(body + (first + u * kThreads) * kPerLoad<E>);
    } else {
#pragma unroll
      for (int u = 0; u < kLoads; ++u) {
        raw[u] = {{E::kNothing, E::kNothing, E::kNothing, E::kNothing}};
        const int64_t v = first + u * kThreads;
        if (v < span.vectors) raw[u] = device::load16(body + v * kPerLoad<E>);
      }
    }
    add<E>(sums, raw, scale);
  }
  return sums;
}

// Of a warp, in every lane.
PYRL_DEVICE Sums warp_sums(Sums sums, float scale) {
  float m = sums.m;
#pragma unroll
  for (int lanes = device::kWarp / 2; lanes > 0; lanes /= 2) m = larger(m, device::shuffle_xor(m, lanes));
  sums.raise(m, scale);
#pragma unroll
  for (int lanes = device::kWarp / 2; lanes > 0; lanes /= 2) {
    sums.s += device::shuffle_xor(sums.s, lanes);
    sums.r += device::shuffle_xor(sums.r, lanes);
  }
  return sums;
}

PYRL_DEVICE void write_stats(float* out, const Sums& sums, float x_y) {
  out[0] = sums.s > 0 ? sums.m : -INFINITY;
  out[1] = sums.s;
  out[2] = sums.r * static_cast<float>(kLn2);
  out[3] = x_y;
}

template <typename E>
PYRL_KERNEL_BOUNDS(kThreads, kBlocks) stats_kernel(Problem problem, int64_t vocab_size, float* stats) {
  PYRL_SHARED(Sums, shared, kWarps);
  const int64_t t = device::block_index();
  const int thread = device::thread_index();
  const int64_t label = problem.labels[t];
  const double temperature = problem.temperature[t * problem.temperature_stride];
  const bool fits = label >= 0 && label < vocab_size && temperature_fits(temperature);
  if (label == kIgnore || !fits) {
    if (thread == 0) write_stats(stats + 4 * t, {kLowest, label == kIgnore ? 0.0f : NAN, 0.0f}, 0.0f);
    return;
  }
  const auto* x = static_cast<const Storage<E>*>(problem.logits) + t * problem.row_stride;
  const int64_t y = label - problem.vocab_start;
  const float x_y = thread == 0 && y >= 0 && y < problem.valid ? load1<E>(x + y) : 0.0f;
  const auto scale = static_cast<float>(kLog2E / temperature);
  const Sums mine = warp_sums(thread_sums<E>(x, problem.valid, scale), scale);
  if (device::lane() == 0) shared[device::warp()] = mine;
  device::block_barrier();
  if (thread != 0) return;
  Sums sums = mine;
  for (int warp = 1; warp < kWarps; ++warp) {
    Sums other = shared[warp];
    const float m = larger(sums.m, other.m);
    sums.raise(m, scale);
    other.raise(m, scale);
    sums.s += other.s;
    sums.r += other.r;
  }
  write_stats(stats + 4 * t, sums, x_y);
}

// --- shards ----------------------------------------------------------------------------------------------------------

// A thread per token.
PYRL_DEVICE int64_t token() { return device::block_index() * kThreads + device::thread_index(); }

int64_t token_blocks(int64_t tokens) {
  return (tokens + kThreads - 1) / kThreads;
}

PYRL_DEVICE Combined<float> combined_row(const Shards& shards, int64_t t, double inv_t) {
  return {shards.stats + 4 * t, shards.shards, 4 * shards.tokens, inv_t};
}

PYRL_KERNEL combine_kernel(Shards shards, float* combined) {
  const int64_t t = token();
  if (t >= shards.tokens) return;
  const Combined<float> row = combined_row(shards, t, 1.0 / shards.temperature[t * shards.temperature_stride]);
  combined[4 * t] = static_cast<float>(row.m);
  combined[4 * t + 1] = static_cast<float>(row.s);
  combined[4 * t + 2] = static_cast<float>(row.r);
  combined[4 * t + 3] = static_cast<float>(row.x_y);
}

PYRL_KERNEL merge_kernel(Shards shards, Merge merge) {
  const int64_t t = token();
  if (t >= shards.tokens) return;
  if (merge.labels[t] == kIgnore) {
    merge.logprobs[t] = merge.entropy[t] = 0.0f;
    merge.lse[t] = 0.0;
    return;
  }
  const double inv_t = 1.0 / shards.temperature[t * shards.temperature_stride];
  const Merged row(combined_row(shards, t, inv_t), inv_t);
  merge.logprobs[t] = static_cast<float>(row.logprob);
  merge.entropy[t] = static_cast<float>(row.entropy);
  merge.lse[t] = row.lse;
  if (row.bad) device::atomic_min(merge.bad_row, static_cast<uint64_t>(t));
}

// --- gradient --------------------------------------------------------------------------------------------------------

// What a row of the gradient is made of, folded: dx_j = p_j (k0 + k1 q_j), q_j = log2 p_j = (x_j - hi) scale - lo.
struct Factors {
  float hi, lo, scale, k0, k1;
};

template <bool kEntropy>
PYRL_DEVICE float gradient_of(float x, const Factors& f) {
  const float q = (x - f.hi) * f.scale - f.lo;
  if constexpr (!kEntropy) return device::exp2(q) * f.k0;
  const float bounded = device::max_nan(q, kCutoff);
  return device::exp2(bounded) * (f.k0 + f.k1 * bounded);
}

template <typename O>
PYRL_DEVICE void write_zeros(Storage<O>* out, int64_t begin, int64_t end) {
  const Span<O> span(out, begin, end);
  const int thread = device::thread_index();
  if (begin + thread < span.body) store1<O>(out + begin + thread, 0.0f);
  if (span.tail + thread < end) store1<O>(out + span.tail + thread, 0.0f);
  for (int64_t v = thread; v < span.vectors; v += kThreads) device::store16(out + span.body + v * kPerLoad<O>, {});
}

// kRatio loads make one store.
template <typename E, typename O>
constexpr int kRatio = kPerLoad<O> / kPerLoad<E>;

template <typename E, typename O, bool kEntropy>
PYRL_DEVICE Bits16 gradient16(const Bits16* raw, const Factors& factors) {
  Bits16 result;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    float dx[O::kPerWord];
#pragma unroll
    for (int i = 0; i < O::kPerWord; ++i) {
      const int j = w * O::kPerWord + i;
      const uint32_t word = raw[j / kPerLoad<E>].word[j % kPerLoad<E> / E::kPerWord];
      dx[i] = gradient_of<kEntropy>(E::get(word, j % E::kPerWord), factors);
    }
    result.word[w] = O::pack(dx);
  }
  return result;
}

// The columns of this thread.
template <typename E, typename O, bool kEntropy>
PYRL_DEVICE void write_gradient(const Storage<E>* x, Storage<O>* out, const Span<O>& span, const Factors& factors) {
  constexpr int kStores = kLoads / kRatio<E, O>;
  const int thread = device::thread_index();
  if (thread < span.body) store1<O>(out + thread, gradient_of<kEntropy>(load1<E>(x + thread), factors));
  for (int64_t j = span.tail + thread; j < span.end; j += kThreads) {
    store1<O>(out + j, gradient_of<kEntropy>(load1<E>(x + j), factors));
  }
  for (int64_t first = thread; first < span.vectors; first += kStores * kThreads) {
    Bits16 raw[kStores][kRatio<E, O>];
#pragma unroll
    for (int u = 0; u < kStores; ++u) {
      const int64_t v = first + u * kThreads;
      if (v >= span.vectors) continue;
#pragma unroll
      for (int i = 0; i < kRatio<E, O>; ++i) {
        raw[u][i] = device::load16(x + span.body + v * kPerLoad<O> + i * kPerLoad<E>);
      }
    }
#pragma unroll
    for (int u = 0; u < kStores; ++u) {
      const int64_t v = first + u * kThreads;
      if (v >= span.vectors) continue;
      device::store16(out + span.body + v * kPerLoad<O>, gradient16<E, O, kEntropy>(raw[u], factors));
    }
  }
}

// The thread to which write_gradient gives column j.
template <typename O>
PYRL_DEVICE int writer(const Span<O>& span, int64_t j) {
  if (j < span.body) return static_cast<int>(j);
  if (j >= span.tail) return static_cast<int>((j - span.tail) % kThreads);
  return static_cast<int>((j - span.body) / kPerLoad<O> % kThreads);
}

template <typename E, typename O, bool kEntropy>
PYRL_KERNEL_BOUNDS(kThreads, kBlocks) backward_kernel(Problem problem, Gradient gradient) {
  const int64_t t = device::block_index();
  auto* out = static_cast<Storage<O>*>(gradient.out) + t * gradient.out_stride;
  const double g_l = static_cast<const float*>(gradient.grad_logprobs)[t];
  const double g_h = kEntropy ? static_cast<const float*>(gradient.grad_entropy)[t] : 0.0f;
  if (problem.labels[t] == kIgnore || (g_l == 0 && g_h == 0)) {
    write_zeros<O>(out, 0, problem.width);
    return;
  }
  const auto* x = static_cast<const Storage<E>*>(problem.logits) + t * problem.row_stride;
  const double temperature = problem.temperature[t * problem.temperature_stride];
  const double inv_t = 1.0 / temperature;
  const double entropy = static_cast<const float*>(gradient.entropy)[t];
  const double centre = gradient.lse[t] * temperature;
  const auto hi = static_cast<float>(centre);
  const double scale = kLog2E * inv_t;
  const Factors factors{
      hi,
      static_cast<float>((centre - hi) * scale),
      static_cast<float>(scale),
      static_cast<float>(-inv_t * (g_l + g_h * entropy)),
      static_cast<float>(-inv_t * g_h * kLn2)};

  Span<O> span(out, 0, problem.valid);
  if (reinterpret_cast<uintptr_t>(x + span.body) % 16 != 0) {  // rows of x and out that are never aligned together
    span.body = span.vectors = span.tail = 0;
  }
  // The label's column is written once more, by the thread that wrote it: 1 - p is formed in double, not from a p
  // rounded to E; what S lost is lost (logprob_entropy.h). Its logit is read first, for `out` may be the logits.
  const int64_t y = problem.labels[t] - problem.vocab_start;
  const bool mine = y >= 0 && y < problem.valid && device::thread_index() == writer(span, y);
  const double d_y = mine ? (static_cast<double>(load1<E>(x + y)) - centre) * inv_t : 0;
  write_gradient<E, O, kEntropy>(x, out, span, factors);
  if (mine) {
    const double p = std::exp(d_y);
    const double entropy_part = p == 0 ? 0 : g_h * p * (d_y + entropy);
    store1<O>(out + y, static_cast<float>(inv_t * (-g_l * std::expm1(d_y) - entropy_part)));
  }
  write_zeros<O>(out, problem.valid, problem.width);
}

template <typename E, typename O>
int launch_backward_of(const Problem& problem, const Gradient& gradient, int64_t tokens, void* stream) {
  const auto kernel = gradient.grad_entropy == nullptr ? backward_kernel<E, O, false> : backward_kernel<E, O, true>;
  return device::launch(kernel, tokens, kThreads, stream, problem, gradient);
}

}  // namespace

int launch_stats(const Problem& problem, int64_t vocab_size, int64_t tokens, float* stats, void* stream) {
  const auto kernel = problem.element == Element::kBFloat16 ? stats_kernel<BFloat16>
                      : problem.element == Element::kHalf   ? stats_kernel<Half>
                                                            : stats_kernel<Float>;
  return device::launch(kernel, tokens, kThreads, stream, problem, vocab_size, stats);
}

int launch_combine(const Shards& shards, float* combined, void* stream) {
  return device::launch(combine_kernel, token_blocks(shards.tokens), kThreads, stream, shards, combined);
}

int launch_merge(const Shards& shards, const Merge& merge, void* stream) {
  return device::launch(merge_kernel, token_blocks(shards.tokens), kThreads, stream, shards, merge);
}

int launch_backward(const Problem& problem, const Gradient& gradient, int64_t tokens, void* stream) {
  const Element out = gradient.out_element;
  switch (problem.element) {
    case Element::kBFloat16:
      return launch_backward_of<BFloat16, BFloat16>(problem, gradient, tokens, stream);
    case Element::kHalf:
      return launch_backward_of<Half, Half>(problem, gradient, tokens, stream);
    default:
      return out == Element::kBFloat16 ? launch_backward_of<Float, BFloat16>(problem, gradient, tokens, stream)
             : out == Element::kHalf   ? launch_backward_of<Float, Half>(problem, gradient, tokens, stream)
                                       : launch_backward_of<Float, Float>(problem, gradient, tokens, stream);
  }
}

}  // namespace pyrl::rows
