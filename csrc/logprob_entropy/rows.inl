// The row kernels (formulas: logprob_entropy.h), included by one source file per instruction set.
#include "logprob_entropy/rows.h"

#include <limits>

#include "logprob_entropy/vec.h"

namespace {

using pyrl::rows::Element;
using pyrl::rows::Gradient;
using pyrl::rows::kIgnore;
using pyrl::rows::Problem;

// Columns worked on at a time: a tile of floats stays in L1 between the search for its maximum and its exponentials, so
// memory is read once. Sums are kept in the compute type within a tile and in double across tiles.
inline constexpr int64_t kTile = 1024;
inline constexpr int kUnroll = 2;  // independent accumulators hide latency; with more, 16 registers do not hold them
inline constexpr int64_t kBlock = kUnroll * kLanes;

struct RowStats {
  double m = -std::numeric_limits<double>::infinity();
  double s = 0;
  double r = 0;

  // Bring the sums to a new, larger maximum.
  PYRL_INLINE void raise_max(double new_m, double inv_t) {
    if (s != 0) {
      const double c = (m - new_m) * inv_t;
      const double f = std::exp(c);
      r = f == 0 ? 0 : f * (r + c * s);
      s *= f;
    }
    m = new_m;
  }
};

template <typename C>
PYRL_INLINE bool holds_nan(const C* x, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    if (x[j] != x[j]) return true;
  }
  return false;
}

// Convert n elements into `tile`, fill up to a multiple of kBlock with -inf, return the maximum.
template <typename E, typename C = Compute<E>>
PYRL_INLINE C load_tile(const E* x, int64_t n, C* tile) {
  const C lowest = -std::numeric_limits<C>::infinity();
  Vec<C> best[kUnroll];
  for (int u = 0; u < kUnroll; ++u) best[u] = splat<C>(lowest);
  int64_t j = 0;
  for (; j + kBlock <= n; j += kBlock) {
    for (int u = 0; u < kUnroll; ++u) {
      const Vec<C> v = load8(x + j + u * kLanes);
      store8(tile + j + u * kLanes, v);
      best[u] = max8(v, best[u]);
    }
  }
  if (j < n) {
    E rest[kBlock];
    std::memcpy(rest, x + j, (n - j) * sizeof(E));
    std::memset(static_cast<void*>(rest + (n - j)), 0, (kBlock - (n - j)) * sizeof(E));
    for (int u = 0; u < kUnroll; ++u) store8(tile + j + u * kLanes, load8(rest + u * kLanes));
    for (int64_t i = n; i < j + kBlock; ++i) tile[i] = lowest;
    for (int u = 0; u < kUnroll; ++u) best[u] = max8(load8(tile + j + u * kLanes), best[u]);
  }
  for (int u = 1; u < kUnroll; ++u) best[0] = max8(best[u], best[0]);
  C result = lowest;
  for (int i = 0; i < kLanes; ++i) result = best[0][i] > result ? best[0][i] : result;
  return result;
}

// S and R of a tile of `padded` values (a multiple of kBlock) against the maximum m.
template <typename C>
PYRL_INLINE void add_tile(const C* tile, int64_t padded, C m, C inv_t, RowStats& row) {
  Vec<C> s[kUnroll] = {};
  Vec<C> r[kUnroll] = {};
  const Vec<C> cutoff = splat<C>(exp_cutoff(C{}));
  for (int64_t j = 0; j < padded; j += kBlock) {
    for (int u = 0; u < kUnroll; ++u) {
      const Vec<C> d = (load8(tile + j + u * kLanes) - m) * inv_t;
      const Vec<C> bounded = d < cutoff ? cutoff : d;
      const Vec<C> e = d < cutoff ? Vec<C>{} : exp8(bounded);
      s[u] += e;
      r[u] += bounded * e;
    }
  }
  for (int u = 1; u < kUnroll; ++u) {
    s[0] += s[u];
    r[0] += r[u];
  }
  row.s += sum8(s[0]);
  row.r += sum8(r[0]);
}

template <typename E, typename C = Compute<E>>
PYRL_INLINE RowStats row_stats(const E* x, int64_t n, double temperature) {
  const double inv_t = 1.0 / temperature;
  RowStats row;
  alignas(64) C tile[kTile];
  for (int64_t start = 0; start < n; start += kTile) {
    const int64_t columns = n - start < kTile ? n - start : kTile;
    const C best = load_tile(x + start, columns, tile);
    if (best > row.m) row.raise_max(best, inv_t);
    if (row.m == -std::numeric_limits<double>::infinity()) {
      if (holds_nan(tile, columns)) row.s = std::numeric_limits<double>::quiet_NaN();
      continue;
    }
    const int64_t padded = (columns + kBlock - 1) / kBlock * kBlock;
    add_tile(tile, padded, static_cast<C>(row.m), static_cast<C>(inv_t), row);
  }
  return row;
}

template <typename E, typename C = Compute<E>>
void stats_rows(const Problem& problem, C* stats, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    C* out = stats + 4 * t;
    if (problem.labels[t] == kIgnore) {
      out[0] = -std::numeric_limits<C>::infinity();
      out[1] = out[2] = out[3] = 0;
      continue;
    }
    const E* x = static_cast<const E*>(problem.logits) + t * problem.row_stride;
    const RowStats row = row_stats<E>(x, problem.valid, problem.temperature[t * problem.temperature_stride]);
    const int64_t y = problem.labels[t] - problem.vocab_start;
    out[0] = static_cast<C>(row.m);
    out[1] = static_cast<C>(row.s);
    out[2] = static_cast<C>(row.r);
    out[3] = y >= 0 && y < problem.valid ? load1(x + y) : C(0);
  }
}

// What a row of the gradient is made of, folded: dx_j = p_j (k0 + k1 d_j), d_j = ((x_j - hi) - lo) inv_t = ln p_j.
template <typename C>
struct RowFactors {
  C hi, lo, inv_t, k0, k1;
};

template <typename C>
PYRL_INLINE Vec<C> gradient8(Vec<C> x, const RowFactors<C>& f) {
  const Vec<C> cutoff = splat<C>(exp_cutoff(C{}));
  const Vec<C> d = ((x - f.hi) - f.lo) * f.inv_t;
  const Vec<C> bounded = d < cutoff ? cutoff : d;
  const Vec<C> p = d < cutoff ? Vec<C>{} : exp8(bounded);
  return p * (f.k0 + f.k1 * bounded);
}

template <typename E, typename C = Compute<E>>
PYRL_INLINE void row_backward(const E* x, E* out, int64_t n, const RowFactors<C>& factors) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) store8(out + j, gradient8(load8(x + j), factors));
  if (j < n) {
    E rest[kLanes] = {};
    std::memcpy(rest, x + j, (n - j) * sizeof(E));
    store8(rest, gradient8(load8(rest), factors));
    std::memcpy(out + j, rest, (n - j) * sizeof(E));
  }
}

template <typename E, typename C = Compute<E>>
void backward_rows(const Problem& problem, const Gradient& gradient, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    E* out = static_cast<E*>(gradient.out) + t * gradient.out_stride;
    const double g_l = static_cast<const C*>(gradient.grad_logprobs)[t];
    const double g_h = static_cast<const C*>(gradient.grad_entropy)[t];
    if (problem.labels[t] == kIgnore || (g_l == 0 && g_h == 0)) {
      std::memset(static_cast<void*>(out), 0, problem.width * sizeof(E));
      continue;
    }
    const E* x = static_cast<const E*>(problem.logits) + t * problem.row_stride;
    const double temperature = problem.temperature[t * problem.temperature_stride];
    const double inv_t = 1.0 / temperature;
    const double entropy = static_cast<const C*>(gradient.entropy)[t];
    const double centre = gradient.lse[t] * temperature;
    const C hi = static_cast<C>(centre);
    const RowFactors<C> factors{
        hi,
        static_cast<C>(centre - hi),
        static_cast<C>(inv_t),
        static_cast<C>(-inv_t * (g_l + g_h * entropy)),
        static_cast<C>(-inv_t * g_h)};

    const int64_t y = problem.labels[t] - problem.vocab_start;
    const bool owns_label = y >= 0 && y < problem.valid;
    const double d_y = owns_label ? (static_cast<double>(load1(x + y)) - centre) * inv_t : 0;
    row_backward<E>(x, out, problem.valid, factors);
    if (owns_label) {  // 1 - p is formed in double: near p = 1 its rounding is the whole gradient
      const double p = std::exp(d_y);
      const double entropy_part = p == 0 ? 0 : g_h * p * (d_y + entropy);
      store1(out + y, static_cast<C>(inv_t * (-g_l * std::expm1(d_y) - entropy_part)));
    }
    if (problem.valid < problem.width) {
      std::memset(static_cast<void*>(out + problem.valid), 0, (problem.width - problem.valid) * sizeof(E));
    }
  }
}

}  // namespace

namespace pyrl::rows::PYRL_ROWS_ISA {

void stats(const Problem& problem, void* stats, int64_t begin, int64_t end) {
  switch (problem.element) {
    case Element::kFloat:
      return stats_rows<float>(problem, static_cast<float*>(stats), begin, end);
    case Element::kDouble:
      return stats_rows<double>(problem, static_cast<double*>(stats), begin, end);
    case Element::kBFloat16:
      return stats_rows<BFloat16>(problem, static_cast<float*>(stats), begin, end);
    case Element::kHalf:
      return stats_rows<Half>(problem, static_cast<float*>(stats), begin, end);
  }
}

void backward(const Problem& problem, const Gradient& gradient, int64_t begin, int64_t end) {
  switch (problem.element) {
    case Element::kFloat:
      return backward_rows<float>(problem, gradient, begin, end);
    case Element::kDouble:
      return backward_rows<double>(problem, gradient, begin, end);
    case Element::kBFloat16:
      return backward_rows<BFloat16>(problem, gradient, begin, end);
    case Element::kHalf:
      return backward_rows<Half>(problem, gradient, begin, end);
  }
}

}  // namespace pyrl::rows::PYRL_ROWS_ISA
