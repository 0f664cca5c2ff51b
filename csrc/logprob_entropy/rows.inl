// The row kernels (formulas: logprob_entropy.h), included by one source file per instruction set.
#include "logprob_entropy/rows.h"

#include <limits>

#include "logprob_entropy/vec.h"

namespace {

using pyrl::rows::Element;
using pyrl::rows::Gradient;
using pyrl::rows::kIgnore;
using pyrl::rows::Problem;
using pyrl::rows::temperature_fits;

// Columns worked on at a time: a tile stays in L1, so one that is summed twice is read from memory once. Sums are kept in
// the compute type within a tile and in double across tiles.
inline constexpr int64_t kTile = 2048;
inline constexpr int64_t kBlock = 2 * kPair;

// The reference is the largest logit so far. A tile that exceeds it by no more than this (in units of z) keeps it, since
// its sums lose nothing by that; another tile is summed once more against its own maximum.
inline constexpr double kSlack = 2;

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

// Below, `n` is a multiple of kBlock.

template <typename E>
PYRL_INLINE bool holds_nan(const E* x, int64_t n) {
  for (int64_t j = 0; j < n; j += kPair) {
    const Pair<Compute<E>> v = load16(x + j);
    for (int i = 0; i < kLanes; ++i) {
      if (v.a[i] != v.a[i] || v.b[i] != v.b[i]) return true;
    }
  }
  return false;
}

template <typename V>
PYRL_INLINE auto largest8(V v) {
  auto result = v[0];
  for (int i = 1; i < kLanes; ++i) result = v[i] > result ? v[i] : result;
  return result;
}

template <typename E, typename C = Compute<E>>
PYRL_INLINE C largest(const E* x, int64_t n) {
  const Vec<C> lowest = splat<C>(-std::numeric_limits<C>::infinity());
  Vec<C> best[] = {lowest, lowest, lowest, lowest};
  for (int64_t j = 0; j < n; j += kBlock) {
    const Pair<C> v = load16(x + j);
    const Pair<C> w = load16(x + j + kPair);
    best[0] = max8(v.a, best[0]);
    best[1] = max8(v.b, best[1]);
    best[2] = max8(w.a, best[2]);
    best[3] = max8(w.b, best[3]);
  }
  return largest8(max8(max8(best[0], best[1]), max8(best[2], best[3])));
}

template <typename C>
struct TileStats {
  C best;
  double s, r;
};

// A tile's maximum, and its S and R against the reference m, in one pass. The next tile is fetched meanwhile, or memory
// would stand still until it is asked for. One set of sums: a second one would not fit in 16 registers.
template <typename E, typename C = Compute<E>>
PYRL_INLINE TileStats<C> tile_stats(const E* x, int64_t n, C m, double inv_t) {
  const C scale = static_cast<C>(inv_t * kLog2E);
  Vec<C> best = splat<C>(-std::numeric_limits<C>::infinity()), s{}, r{};
  const auto add = [&](Vec<C> v) __attribute__((always_inline)) {
    best = max8(v, best);
    const Vec<C> d = max8(splat<C>(exp2_cutoff(C{})), (v - m) * scale);
    const Vec<C> e = exp2_8(d);
    s += e;
    r += d * e;
  };
  for (int64_t j = 0; j < n; j += kPair) {
    __builtin_prefetch(x + j + kTile);
    const Pair<C> v = load16(x + j);
    add(v.a);
    add(v.b);
  }
  return {largest8(best), sum8(s), kLn2 * sum8(r)};
}

template <typename E, typename C = Compute<E>>
PYRL_INLINE void add_tile(const E* x, int64_t n, double inv_t, RowStats& row) {
  if (row.m == -std::numeric_limits<double>::infinity()) {
    row.m = largest(x, n);
    if (row.m == -std::numeric_limits<double>::infinity()) {
      if (holds_nan(x, n)) row.s = std::numeric_limits<double>::quiet_NaN();
      return;
    }
  }
  TileStats<C> tile = tile_stats(x, n, static_cast<C>(row.m), inv_t);
  if ((tile.best - row.m) * inv_t > kSlack) {
    row.raise_max(tile.best, inv_t);
    tile = tile_stats(x, n, tile.best, inv_t);
  }
  row.s += tile.s;
  row.r += tile.r;
  if (tile.best > row.m) row.raise_max(tile.best, inv_t);
}

template <typename E>
PYRL_INLINE RowStats row_stats(const E* x, int64_t n, double temperature) {
  const double inv_t = 1.0 / temperature;
  RowStats row;
  const int64_t whole = n / kTile * kTile;
  for (int64_t start = 0; start < whole; start += kTile) add_tile(x + start, kTile, inv_t, row);
  if (whole < n) {
    alignas(64) E tile[kTile];  // the rest, filled up with -inf, which adds nothing
    const int64_t rest = n - whole;
    const int64_t padded = (rest + kBlock - 1) / kBlock * kBlock;
    std::memcpy(static_cast<void*>(tile), x + whole, rest * sizeof(E));
    for (int64_t j = rest; j < padded; ++j) tile[j] = minus_infinity<E>();
    add_tile(tile, padded, inv_t, row);
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
    const double temperature = problem.temperature[t * problem.temperature_stride];
    if (!temperature_fits(temperature)) {
      out[0] = -std::numeric_limits<C>::infinity();
      out[1] = std::numeric_limits<C>::quiet_NaN();
      out[2] = out[3] = 0;
      continue;
    }
    const E* x = static_cast<const E*>(problem.logits) + t * problem.row_stride;
    const RowStats row = row_stats<E>(x, problem.valid, temperature);
    const int64_t y = problem.labels[t] - problem.vocab_start;
    out[0] = static_cast<C>(row.m);
    out[1] = static_cast<C>(row.s);
    out[2] = static_cast<C>(row.r);
    out[3] = y >= 0 && y < problem.valid ? load1(x + y) : C(0);
  }
}

// What a row of the gradient is made of, folded: dx_j = p_j (k0 + k1 d_j), d_j = ((x_j - hi) - lo) scale = log2 p_j.
template <typename C>
struct RowFactors {
  C hi, lo, scale, k0, k1;
};

template <typename C>
PYRL_INLINE Vec<C> gradient8(Vec<C> x, const RowFactors<C>& f) {
  const Vec<C> d = max8(splat<C>(exp2_cutoff(C{})), ((x - f.hi) - f.lo) * f.scale);
  return exp2_8(d) * (f.k0 + f.k1 * d);
}

template <typename E, typename O>
PYRL_INLINE void backward16(const E* x, O* out, const RowFactors<Compute<E>>& factors) {
  const Pair<Compute<E>> v = load16(x);
  store16<E>(out, {gradient8(v.a, factors), gradient8(v.b, factors)});
}

template <typename E, typename O, typename C = Compute<E>>
PYRL_INLINE void row_backward(const E* x, O* out, int64_t n, const RowFactors<C>& factors) {
  int64_t j = 0;
  for (; j + kPair <= n; j += kPair) backward16(x + j, out + j, factors);
  if (j < n) {
    E rest[kPair] = {};
    O result[kPair];
    std::memcpy(static_cast<void*>(rest), x + j, (n - j) * sizeof(E));
    backward16(rest, result, factors);
    std::memcpy(static_cast<void*>(out + j), result, (n - j) * sizeof(O));
  }
}

template <typename E, typename O, typename C = Compute<E>>
void backward_rows(const Problem& problem, const Gradient& gradient, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    O* out = static_cast<O*>(gradient.out) + t * gradient.out_stride;
    const double g_l = static_cast<const C*>(gradient.grad_logprobs)[t];
    const double g_h = gradient.grad_entropy == nullptr ? 0 : static_cast<const C*>(gradient.grad_entropy)[t];
    if (problem.labels[t] == kIgnore || (g_l == 0 && g_h == 0)) {
      std::memset(static_cast<void*>(out), 0, problem.width * sizeof(O));
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
        static_cast<C>(inv_t * kLog2E),
        static_cast<C>(-inv_t * (g_l + g_h * entropy)),
        static_cast<C>(-inv_t * g_h * kLn2)};

    const int64_t y = problem.labels[t] - problem.vocab_start;
    const bool owns_label = y >= 0 && y < problem.valid;
    const double d_y = owns_label ? (static_cast<double>(load1(x + y)) - centre) * inv_t : 0;
    row_backward(x, out, problem.valid, factors);
    if (owns_label) {  // 1 - p is formed in double, not from a p rounded to E; what S lost is lost (logprob_entropy.h)
      const double p = std::exp(d_y);
      const double entropy_part = p == 0 ? 0 : g_h * p * (d_y + entropy);
      store1(out + y, static_cast<C>(inv_t * (-g_l * std::expm1(d_y) - entropy_part)));
    }
    if (problem.valid < problem.width) {
      std::memset(static_cast<void*>(out + problem.valid), 0, (problem.width - problem.valid) * sizeof(O));
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
      switch (gradient.out_element) {
        case Element::kBFloat16:
          return backward_rows<float, BFloat16>(problem, gradient, begin, end);
        case Element::kHalf:
          return backward_rows<float, Half>(problem, gradient, begin, end);
        default:
          return backward_rows<float, float>(problem, gradient, begin, end);
      }
    case Element::kDouble:
      return backward_rows<double, double>(problem, gradient, begin, end);
    case Element::kBFloat16:
      return backward_rows<BFloat16, BFloat16>(problem, gradient, begin, end);
    case Element::kHalf:
      return backward_rows<Half, Half>(problem, gradient, begin, end);
  }
}

}  // namespace pyrl::rows::PYRL_ROWS_ISA
