// The CUDA kernels of logprob_entropy, on the host, against the formulas in float64.
//
// Sizes by code path, in columns of bf16 (fp32 takes half as many): 1, 17 (scalars and few vectors), 5003 (of which 4096
// are a full group of loads of a block, the rest a part of one and scalars at both ends; every row is aligned otherwise).
#include <sys/mman.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "logprob_entropy/logprob_entropy_kernels.h"

namespace {

using pyrl::rows::Element;
using pyrl::rows::kIgnore;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr float kUntouched = 77.0f;

// Numbers of an element type. Inputs may be rounded in any way: the reference reads what was stored.
struct BFloat16 {
  using Storage = uint16_t;
  static constexpr Element kElement = Element::kBFloat16;
  static constexpr double kUnit = 0x1p-8;
  static double get(uint16_t bits) {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &word, 4);
    return x;
  }
  static uint16_t put(double value) {
    const auto x = static_cast<float>(value);
    uint32_t word;
    std::memcpy(&word, &x, 4);
    return static_cast<uint16_t>(word >> 16);
  }
};
struct Half {
  using Storage = _Float16;
  static constexpr Element kElement = Element::kHalf;
  static constexpr double kUnit = 0x1p-11;
  static double get(_Float16 x) { return static_cast<float>(x); }
  static _Float16 put(double x) { return static_cast<_Float16>(static_cast<float>(x)); }
};
struct Float {
  using Storage = float;
  static constexpr Element kElement = Element::kFloat;
  static constexpr double kUnit = 0x1p-20;  // of sums and exponentials in fp32, not of one rounding
  static double get(float x) { return x; }
  static float put(double x) { return static_cast<float>(x); }
};

// [T, width], rows `stride` apart, the first `offset` elements into an allocation that ends with the last row.
template <typename E>
struct Matrix {
  int64_t tokens, width, stride, offset;
  std::vector<typename E::Storage> storage;

  Matrix(int64_t tokens_, int64_t width_, int64_t stride_, int64_t offset_)
      : tokens(tokens_), width(width_), stride(stride_), offset(offset_),
        storage(offset + (tokens - 1) * stride + width, E::put(kUntouched)) {}
  typename E::Storage* data() { return storage.data() + offset; }
  double get(int64_t t, int64_t j) const { return E::get(storage[offset + t * stride + j]); }
  void set(int64_t t, int64_t j, double x) { storage[offset + t * stride + j] = E::put(x); }
};

struct Row {
  double logprob = 0, entropy = 0, lse = 0;
  std::vector<double> p, d;
};

template <typename E>
Row reference(const Matrix<E>& x, int64_t t, int64_t label, double temperature, int64_t vocab) {
  Row row;
  double m = -kInf, s = 0;
  for (int64_t j = 0; j < vocab; ++j) m = std::fmax(m, x.get(t, j));
  for (int64_t j = 0; j < vocab; ++j) s += std::exp((x.get(t, j) - m) / temperature);
  row.lse = m / temperature + std::log(s);
  for (int64_t j = 0; j < vocab; ++j) {
    row.d.push_back((x.get(t, j) - m) / temperature - std::log(s));
    row.p.push_back(std::exp(row.d.back()));
    if (row.p.back() > 0) row.entropy -= row.p.back() * row.d.back();
  }
  row.logprob = row.d[label];
  return row;
}

struct Outputs {
  std::vector<float> logprobs, entropy;
  std::vector<double> lse;
  int64_t bad_row = -1;
};

// Labels and temperatures, and what is upstream of the outputs.
struct Case {
  std::vector<int64_t> labels;
  std::vector<double> temperature;
  std::vector<float> grad_logprobs, grad_entropy;

  Case(int64_t tokens, int64_t vocab, std::mt19937_64& random) {
    std::normal_distribution<float> normal;
    for (int64_t t = 0; t < tokens; ++t) {
      labels.push_back(static_cast<int64_t>(random() % vocab));
      temperature.push_back(0.5 + 0.25 * static_cast<double>(t % 5));
      grad_logprobs.push_back(normal(random));
      grad_entropy.push_back(normal(random));
    }
  }
};

template <typename E>
pyrl::rows::Problem problem_of(Matrix<E>& x, const Case& c, int64_t begin, int64_t end, int64_t vocab) {
  const int64_t valid = std::min(std::max<int64_t>(vocab - begin, 0), end - begin);
  const int64_t step = c.temperature.size() == 1 ? 0 : 1;
  return {E::kElement, x.data() + begin, x.stride, end - begin, valid, begin, c.labels.data(), c.temperature.data(), step};
}

template <typename E>
void fill(Matrix<E>& x, int64_t vocab, std::mt19937_64& random) {
  std::normal_distribution<double> normal(0.0, 3.0);
  for (int64_t t = 0; t < x.tokens; ++t) {
    for (int64_t j = 0; j < x.width; ++j) x.set(t, j, j < vocab ? normal(random) : kNan);
  }
}

// Statistics of the columns between `cuts`, merged; with `combine`, through launch_combine first.
template <typename E>
Outputs forward(Matrix<E>& x, const Case& c, const std::vector<int64_t>& cuts, int64_t vocab, bool combine = false) {
  const int64_t shards = static_cast<int64_t>(cuts.size()) - 1;
  std::vector<float> stats(shards * x.tokens * 4);
  for (int64_t k = 0; k < shards; ++k) {
    pyrl::rows::launch_stats(
        problem_of(x, c, cuts[k], cuts[k + 1], vocab), vocab, x.tokens, stats.data() + k * x.tokens * 4, nullptr);
  }
  const int64_t step = c.temperature.size() == 1 ? 0 : 1;
  pyrl::rows::Shards merged{stats.data(), shards, x.tokens, c.temperature.data(), step};
  std::vector<float> combined(x.tokens * 4);
  if (combine) {
    pyrl::rows::launch_combine(merged, combined.data(), nullptr);
    merged.stats = combined.data();
    merged.shards = 1;
  }
  Outputs out;
  out.logprobs.resize(x.tokens);
  out.entropy.resize(x.tokens);
  out.lse.resize(x.tokens);
  uint64_t bad_row = ~uint64_t{0};
  pyrl::rows::launch_merge(
      merged, {c.labels.data(), out.logprobs.data(), out.entropy.data(), out.lse.data(), &bad_row}, nullptr);
  out.bad_row = static_cast<int64_t>(bad_row);
  return out;
}

template <typename E>
void check_forward(const std::string& name, Matrix<E>& x, const Case& c, const Outputs& got, int64_t vocab) {
  for (int64_t t = 0; t < x.tokens; ++t) {
    const std::string at = name + " row " + std::to_string(t);
    if (c.labels[t] == kIgnore) {
      check::that(got.logprobs[t] == 0 && got.entropy[t] == 0 && got.lse[t] == 0, at + " is ignored");
      continue;
    }
    const Row want = reference(x, t, c.labels[t], c.temperature[t % c.temperature.size()], vocab);
    const double unit = 0x1p-21 * std::fmax(1, std::fabs(want.logprob));
    check::near(got.logprobs[t], want.logprob, unit, at + " logprob");
    check::near(got.entropy[t], want.entropy, 0x1p-20 * std::fmax(1, want.entropy), at + " entropy");
    check::near(got.lse[t], want.lse, unit, at + " lse");
  }
  check::that(got.bad_row == -1, name + " has no bad row");
}

template <typename E, typename O>
void check_gradient(
    const std::string& name, Matrix<E>& x, const Case& c, Matrix<O>& out, int64_t vocab, bool with_entropy) {
  for (int64_t t = 0; t < x.tokens; ++t) {
    const double g_l = c.grad_logprobs[t], g_h = with_entropy ? c.grad_entropy[t] : 0;
    const bool zero = c.labels[t] == kIgnore || (g_l == 0 && g_h == 0);
    const double temperature = c.temperature[t % c.temperature.size()];
    const Row row = zero ? Row() : reference(x, t, c.labels[t], temperature, vocab);
    for (int64_t j = 0; j < x.width; ++j) {
      double want = 0;
      if (!zero && j < vocab && row.p[j] > 0) want = -row.p[j] * (g_l + g_h * (row.d[j] + row.entropy)) / temperature;
      if (!zero && j == c.labels[t]) want += g_l / temperature;
      const bool exact = want == 0;
      const double tolerance = exact ? 0 : O::kUnit * std::fabs(want) + 0x1p-22;
      check::near(out.get(t, j), want, tolerance,
                  [&] { return name + " gradient " + std::to_string(t) + ", " + std::to_string(j); });
    }
  }
  for (int64_t t = 0; t + 1 < out.tokens; ++t) {
    for (int64_t j = out.width; j < out.stride; ++j) {
      check::that(out.get(t, j) == O::get(O::put(kUntouched)), [&] { return name + " wrote between rows"; });
    }
  }
  for (int64_t i = 0; i < out.offset; ++i) {
    check::that(O::get(out.storage[i]) == O::get(O::put(kUntouched)), name + " wrote before the first row");
  }
}

template <typename E, typename O>
void backward(Matrix<E>& x, const Case& c, const Outputs& forward, Matrix<O>& out, int64_t vocab, bool with_entropy) {
  const pyrl::rows::Gradient gradient{
      c.grad_logprobs.data(), with_entropy ? c.grad_entropy.data() : nullptr, forward.entropy.data(),
      forward.lse.data(), O::kElement, out.data(), out.stride};
  pyrl::rows::launch_backward(problem_of(x, c, 0, x.width, vocab), gradient, x.tokens, nullptr);
}

// Everything about one shape: forward whole and in shards, backward with and without entropy, in place.
template <typename E, typename O = E>
void test_shape(
    const std::string& name, int64_t tokens, int64_t width, int64_t stride, int64_t offset, int64_t out_offset,
    int64_t vocab) {
  std::mt19937_64 random(tokens * 1000003 + width);
  Matrix<E> x(tokens, width, stride, offset);
  fill(x, vocab, random);
  Case c(tokens, vocab, random);
  if (tokens > 2) {  // rows that must not be read
    c.labels[1] = kIgnore;
    c.grad_logprobs[2] = c.grad_entropy[2] = 0;
    c.grad_logprobs[0] = 0;  // of the entropy alone
    for (int64_t j = 0; j < width; ++j) x.set(1, j, kNan);
  }
  const Outputs whole = forward(x, c, {0, width}, vocab);
  check_forward(name, x, c, whole, vocab);
  const std::vector<int64_t> cuts{0, width / 3, width / 3, width};
  check_forward(name + " in shards", x, c, forward(x, c, cuts, vocab), vocab);
  check_forward(name + " combined", x, c, forward(x, c, cuts, vocab, true), vocab);
  for (const bool with_entropy : {true, false}) {
    Matrix<O> out(tokens, width, stride, out_offset);
    backward(x, c, whole, out, vocab, with_entropy);
    check_gradient(name, x, c, out, vocab, with_entropy);
    if constexpr (std::is_same_v<E, O>) {
      if (offset != out_offset) continue;
      Matrix<E> over = x;
      backward(over, c, whole, over, vocab, with_entropy);
      bool same = true;
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t j = 0; j < width; ++j) same &= over.get(t, j) == out.get(t, j);
      }
      check::that(same, name + " in place gives the same bits");
    }
  }
}

// Rows that have no softmax, and labels and temperatures out of range: all but the last of `rows` are fine.
void test_bad_rows(const std::vector<const char*>& kinds) {
  constexpr int64_t kWidth = 300;
  const auto row_of = [](const char* kind, Matrix<Float>& x, Case& c, int64_t t) {
    const std::string name = kind;
    if (name == "nan") x.set(t, 200, kNan);
    if (name == "+inf") x.set(t, 200, kInf);
    if (name == "-inf" || name == "nan among -inf") {
      for (int64_t j = 0; j < kWidth; ++j) x.set(t, j, -kInf);
    }
    if (name == "nan among -inf") x.set(t, 5, kNan);
    if (name == "nan, and far below the others' maximum") {
      for (int64_t j = 0; j < 100; ++j) x.set(t, j, j == 5 ? kNan : -1e4);
    }
    if (name == "label above") c.labels[t] = kWidth;
    if (name == "label below") c.labels[t] = -1;
    if (name == "temperature 0") c.temperature[t] = 0;
    if (name == "temperature below 0") c.temperature[t] = -1;
    if (name == "temperature just too small") c.temperature[t] = 0x1.0c6f79p-20;  // fp32(1e-6) is 0x1.0c6f7ap-20
    if (name == "temperature just too large") c.temperature[t] = 1000000.0625;
    if (name == "temperature inf") c.temperature[t] = kInf;
    if (name == "temperature nan") c.temperature[t] = kNan;
  };
  for (const char* kind : kinds) {
    std::mt19937_64 random(7);
    Matrix<Float> x(4, kWidth, kWidth, 0);
    fill(x, kWidth, random);
    Case c(4, kWidth, random);
    row_of(kind, x, c, 1);
    row_of(kind, x, c, 3);
    check::near(static_cast<double>(forward(x, c, {0, kWidth}, kWidth).bad_row), 1, 0, std::string(kind) + " is bad");
    check::near(
        static_cast<double>(forward(x, c, {0, 100, kWidth}, kWidth, true).bad_row), 1, 0,
        std::string(kind) + " is bad in shards");
  }
}

// -inf logits, a dominant one, offsets of 1e4, one temperature for all.
void test_extreme_rows() {
  constexpr int64_t kWidth = 700;
  std::mt19937_64 random(11);
  Matrix<Float> x(5, kWidth, kWidth, 0);
  fill(x, kWidth, random);
  Case c(5, kWidth, random);
  c.temperature = {0.7};
  for (int64_t j = 0; j < kWidth; ++j) {
    if (j % 3 == 0) x.set(0, j, -kInf);
    x.set(1, j, j == 7 ? 1e4 : -1e4);
    x.set(2, j, x.get(2, j) + 1e4);
    x.set(3, j, x.get(3, j) - 1e4);
    if (j != 699) x.set(4, j, -kInf);
  }
  c.labels[0] = 4;
  c.labels[1] = 7;
  c.labels[4] = 699;
  const Outputs whole = forward(x, c, {0, kWidth}, kWidth);
  check_forward("extreme", x, c, whole, kWidth);
  check_forward("extreme in shards", x, c, forward(x, c, {0, 100, 350, kWidth}, kWidth), kWidth);
  Matrix<Float> out(5, kWidth, kWidth, 0);
  backward(x, c, whole, out, kWidth, true);
  check_gradient("extreme", x, c, out, kWidth, true);
  c.labels[0] = 3;  // of probability 0
  const Outputs impossible = forward(x, c, {0, kWidth}, kWidth);
  check::that(impossible.logprobs[0] == -kInf && std::isfinite(impossible.entropy[0]), "a label on -inf has -inf");
  backward(x, c, impossible, out, kWidth, true);
  bool finite = true;
  for (int64_t j = 0; j < kWidth; ++j) finite &= std::isfinite(out.get(0, j));
  check::that(finite, "a label on -inf has a finite gradient");
}

// Near p = 1 the gradient at the label is 1 - p: right but for the rounding of S, which p rounded to bf16 is not. The
// other's is exact to a rounding of its own size.
void test_gradient_near_probability_one(double logit) {
  Matrix<Float> x(1, 2, 2, 0);
  x.set(0, 0, logit);
  x.set(0, 1, 0.0);
  std::mt19937_64 random(3);
  Case c(1, 2, random);
  c.labels = {0};
  c.temperature = {1.0};
  c.grad_logprobs = {1.0f};
  Matrix<Float> out(1, 2, 2, 0);
  backward(x, c, forward(x, c, {0, 2}, 2), out, 2, false);
  const double want = 1 / (1 + std::exp(logit));
  check::near(out.get(0, 0), want, 0x1p-24 + 1e-6 * want, "1 - p of " + std::to_string(logit));
  check::near(out.get(0, 1), -want, 1e-5 * want, "p of the other of " + std::to_string(logit));
}

// A row that starts more than 2^31 elements after the first.
void test_far_rows() {
  constexpr int64_t kStride = (int64_t{1} << 31) + 8, kWidth = 40;
  const size_t bytes = (kStride + kWidth) * sizeof(uint16_t);
  void* memory = mmap(nullptr, 2 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  check::that(memory != MAP_FAILED, "8 GB of address space");
  if (memory == MAP_FAILED) return;
  auto* logits = static_cast<uint16_t*>(memory);
  auto* gradient = logits + bytes / sizeof(uint16_t);
  std::mt19937_64 random(5);
  Matrix<BFloat16> x(2, kWidth, kWidth, 0);
  fill(x, kWidth, random);
  for (int64_t t = 0; t < 2; ++t) std::memcpy(logits + t * kStride, x.data() + t * kWidth, kWidth * 2);
  const Case c(2, kWidth, random);
  const Outputs near = forward(x, c, {0, kWidth}, kWidth);
  std::vector<float> stats(8), wanted(8);
  pyrl::rows::Problem problem = problem_of(x, c, 0, kWidth, kWidth);
  pyrl::rows::launch_stats(problem, kWidth, 2, wanted.data(), nullptr);
  problem.logits = logits;
  problem.row_stride = kStride;
  pyrl::rows::launch_stats(problem, kWidth, 2, stats.data(), nullptr);
  check::that(stats == wanted, "statistics of a far row");
  Matrix<BFloat16> out(2, kWidth, kWidth, 0);
  backward(x, c, near, out, kWidth, true);
  pyrl::rows::launch_backward(
      problem,
      {c.grad_logprobs.data(), c.grad_entropy.data(), near.entropy.data(), near.lse.data(), Element::kBFloat16, gradient,
       kStride},
      2, nullptr);
  check::that(std::memcmp(gradient + kStride, out.data() + kWidth, kWidth * 2) == 0, "gradient of a far row");
  munmap(memory, 2 * bytes);
}

void test_nothing() {
  std::mt19937_64 random(1);
  const Case c(1, 10, random);
  Matrix<Float> x(1, 10, 10, 0);
  check::that(pyrl::rows::launch_stats(problem_of(x, c, 0, 10, 10), 10, 0, nullptr, nullptr) == 0, "no rows");
  std::vector<float> stats(4);
  pyrl::rows::launch_stats(problem_of(x, c, 0, 0, 10), 10, 1, stats.data(), nullptr);
  check::that(stats[0] == -kInf && stats[1] == 0 && stats[2] == 0 && stats[3] == 0, "no columns");
}

// Two runs give the same bits.
void test_repeat() {
  std::mt19937_64 random(13);
  Matrix<BFloat16> x(2, 3000, 3000, 0);
  fill(x, 3000, random);
  const Case c(2, 3000, random);
  const Outputs first = forward(x, c, {0, 3000}, 3000), second = forward(x, c, {0, 3000}, 3000);
  check::that(
      first.logprobs == second.logprobs && first.entropy == second.entropy && first.lse == second.lse, "repeated");
}

// Each way through the kernels' one barrier, and blocks that use shared memory after one another.
void test_races() {
  test_shape<BFloat16>("bf16 17 columns", 4, 17, 17, 0, 0, 17);
  test_shape<Float, BFloat16>("fp32 to bf16", 3, 2200, 2208, 0, 0, 2190);
  test_bad_rows({"nan", "label above"});
  test_nothing();
}

}  // namespace

int main() {
  if (check::kRaces) {
    test_races();
    return check::report();
  }
  test_shape<BFloat16>("bf16 one column", 1, 1, 1, 0, 0, 1);
  test_shape<BFloat16>("bf16 17 columns", 4, 17, 17, 0, 0, 17);
  test_shape<BFloat16>("bf16 5003 columns, 3 of padding", 3, 5003, 5003, 0, 0, 5000);
  test_shape<BFloat16>("bf16 aligned rows", 3, 4096 + 1024, 4096 + 1032, 0, 0, 4096 + 700);
  test_shape<BFloat16>("bf16 nothing aligned together", 3, 900, 901, 1, 4, 898);
  test_shape<Half>("fp16", 3, 1000, 1008, 1, 1, 990);
  test_shape<Float>("fp32", 3, 2100, 2100, 1, 1, 2099);
  test_shape<Float, BFloat16>("fp32 to bf16", 3, 2200, 2208, 0, 0, 2190);
  test_shape<Float, Half>("fp32 to fp16, never aligned", 3, 150, 153, 0, 1, 149);
  test_bad_rows(
      {"nan", "+inf", "-inf", "nan among -inf", "nan, and far below the others' maximum", "label above", "label below",
       "temperature 0", "temperature below 0", "temperature just too small", "temperature just too large",
       "temperature inf", "temperature nan"});
  test_extreme_rows();
  for (int logit = 0; logit <= 30; ++logit) test_gradient_near_probability_one(logit);
  test_far_rows();
  test_nothing();
  test_repeat();
  return check::report();
}
