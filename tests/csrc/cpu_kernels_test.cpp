// The CPU ops as torch calls them (csrc/*/*_cpu.cpp), with their inputs in allocations that end where the tensor does.
//
// Sizes by code path: none, one token, 33, and more than 2^15 tokens, which are two tasks; columns: 1, 17 (less than two
// vectors), 2048 (a tile, and one more column than a tile), 3100 (a tile and a part) and 4096 (two tiles).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "check.h"
#include "counter/counter.h"
#include "logprob_entropy/logprob_entropy.h"
#include "policy_loss/policy_loss.h"
#include "selection/key.h"
#include "selection/selection.h"
#include "token_covariance/token_covariance.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kTwoTasks = (1 << 15) + 7;

struct BFloat16 {
  uint16_t bits = 0;
  static constexpr ScalarType kType = ScalarType::BFloat16;
  static constexpr double kUnit = 0x1p-8;
  BFloat16() = default;
  explicit BFloat16(double value) {
    const auto x = static_cast<float>(value);
    uint32_t word;
    std::memcpy(&word, &x, 4);
    bits = static_cast<uint16_t>(word >> 16);
  }
  operator double() const {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &word, 4);
    return x;
  }
};

template <typename T>
constexpr ScalarType kTypeOf = T::kType;
template <>
constexpr ScalarType kTypeOf<_Float16> = ScalarType::Half;
template <>
constexpr ScalarType kTypeOf<float> = ScalarType::Float;
template <>
constexpr ScalarType kTypeOf<double> = ScalarType::Double;
template <>
constexpr ScalarType kTypeOf<int32_t> = ScalarType::Int;
template <>
constexpr ScalarType kTypeOf<int64_t> = ScalarType::Long;
template <>
constexpr ScalarType kTypeOf<bool> = ScalarType::Bool;

template <typename T>
constexpr double kUnit = T::kUnit;
template <>
constexpr double kUnit<_Float16> = 0x1p-11;
template <>
constexpr double kUnit<float> = 0x1p-20;  // of sums and exponentials, not of one rounding
template <>
constexpr double kUnit<double> = 0x1p-44;

// A tensor and its memory, not a byte more.
template <typename T>
struct Array {
  std::vector<int64_t> sizes, strides;
  std::unique_ptr<T[]> storage;
  int64_t length;

  explicit Array(std::vector<int64_t> sizes_, int64_t row_stride = 0) : sizes(std::move(sizes_)), length(1) {
    strides.assign(sizes.size(), 1);
    for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * sizes[d];
    if (row_stride != 0) strides[0] = row_stride;
    for (size_t d = 0; d < sizes.size(); ++d) length += (sizes[d] - 1) * strides[d];
    for (const int64_t size : sizes) length = size == 0 ? 0 : length;
    storage.reset(new T[length]());
  }
  static Array of(std::initializer_list<T> values) {
    Array array({static_cast<int64_t>(values.size())});
    std::copy(values.begin(), values.end(), array.storage.get());
    return array;
  }
  T& operator[](int64_t i) { return storage[i]; }
  const T& operator[](int64_t i) const { return storage[i]; }
  Tensor tensor() const {
    return torch::stable::from_blob(
        storage.get(), sizes, strides, torch::stable::Device(torch::headeronly::DeviceType::CPU), kTypeOf<T>);
  }
};

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// --- logprob_entropy

struct Row {
  double m = -kInf, s = 0, logprob = 0, entropy = 0, lse = 0;
  std::vector<double> p, d;
};

template <typename E>
Row reference(const E* x, int64_t vocab, int64_t label, double temperature) {
  Row row;
  for (int64_t j = 0; j < vocab; ++j) row.m = std::fmax(row.m, x[j]);
  for (int64_t j = 0; j < vocab; ++j) row.s += std::exp((x[j] - row.m) / temperature);
  row.lse = row.m / temperature + std::log(row.s);
  for (int64_t j = 0; j < vocab; ++j) {
    row.d.push_back((x[j] - row.m) / temperature - std::log(row.s));
    row.p.push_back(std::exp(row.d.back()));
    if (row.p.back() > 0) row.entropy -= row.p.back() * row.d.back();
  }
  row.logprob = row.d[label];
  return row;
}

// Row 1 is ignored, row 2 has no upstream gradient, the last columns are padding of NaN.
template <typename E, typename C>
struct Case {
  int64_t tokens = 4, width, vocab;
  Array<E> logits;
  Array<int64_t> labels;
  Array<double> temperature = Array<double>::of({0.7, 1.0, 1.0, 1.5});
  Array<C> grad_logprobs = Array<C>::of({C(0.5), C(1), C(0), C(-2)});
  Array<C> grad_entropy = Array<C>::of({C(-1), C(1), C(0), C(0.25)});

  Case(int64_t width_, int64_t vocab_, int64_t stride)
      : width(width_), vocab(vocab_), logits({4, width_}, stride), labels(std::vector<int64_t>{4}) {
    std::mt19937_64 random(width);
    std::normal_distribution<double> normal(0.0, 3.0);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t j = 0; j < width; ++j) at(t)[j] = E(j < vocab && t != 1 ? normal(random) : kNan);
      labels[t] = t == 1 ? -100 : static_cast<int64_t>(random() % vocab);
    }
  }
  E* at(int64_t t) { return &logits[t * logits.strides[0]]; }
};

template <typename O, typename E, typename C>
void check_gradient(const std::string& name, Case<E, C>& c, const O* out, int64_t stride, bool with_entropy,
                    const std::vector<Row>& rows) {
  for (int64_t t = 0; t < c.tokens; ++t) {
    const double g_l = c.grad_logprobs[t], g_h = with_entropy ? c.grad_entropy[t] : 0;
    for (int64_t j = 0; j < c.width; ++j) {
      double want = 0;
      if (t != 1 && j < c.vocab) {
        want = -rows[t].p[j] * (g_l + g_h * (rows[t].d[j] + rows[t].entropy)) / c.temperature[t];
        if (j == c.labels[t]) want += g_l / c.temperature[t];
      }
      const double tolerance = want == 0 ? 0 : kUnit<O> * std::fabs(want) + (sizeof(C) == 8 ? 0x1p-46 : 0x1p-22);
      check::near(out[t * stride + j], want, tolerance,
                  [&] { return name + " " + std::to_string(t) + ", " + std::to_string(j); });
    }
  }
}

template <typename E, typename C = float>
void test_logprob_entropy(const std::string& name, int64_t width, int64_t vocab, int64_t stride) {
  Case<E, C> c(width, vocab, stride);
  const Tensor logits = c.logits.tensor(), labels = c.labels.tensor(), temperature = c.temperature.tensor();
  Tensor stats = pyrl::logprob_entropy_stats_cpu(logits, labels, temperature, 0, vocab);
  Array<C> shards({2, c.tokens, 4});  // the other shard is padding
  for (int64_t t = 0; t < c.tokens; ++t) {
    std::memcpy(&shards[(c.tokens + t) * 4], data<C>(stats) + t * 4, 4 * sizeof(C));
    shards[t * 4] = -std::numeric_limits<C>::infinity();
  }
  Array<C> combined({1, c.tokens, 4});
  const Tensor one = pyrl::logprob_entropy_combine_cpu(shards.tensor(), temperature);
  std::memcpy(&combined[0], data<C>(one), c.tokens * 4 * sizeof(C));
  const auto [logprobs, entropy, lse, bad_row] =
      pyrl::logprob_entropy_merge_cpu(combined.tensor(), labels, temperature);
  check::that(*data<int64_t>(bad_row) == -1, name + " has no bad row");
  const double unit = sizeof(C) == 8 ? 0x1p-44 : 0x1p-20;
  std::vector<Row> rows(c.tokens);
  for (int64_t t = 0; t < c.tokens; ++t) {
    if (t != 1) rows[t] = reference(c.at(t), vocab, c.labels[t], c.temperature[t]);
    const std::string at = name + " row " + std::to_string(t);
    check::near(data<C>(logprobs)[t], rows[t].logprob, unit * (1 + std::fabs(rows[t].logprob)), at + " logprob");
    check::near(data<C>(entropy)[t], rows[t].entropy, unit * (1 + rows[t].entropy), at + " entropy");
    check::near(data<double>(lse)[t], rows[t].lse, unit * (1 + std::fabs(rows[t].lse)), at + " lse");
  }

  const Tensor g_l = c.grad_logprobs.tensor(), g_h = c.grad_entropy.tensor();
  const Tensor without = pyrl::logprob_entropy_backward_cpu(
      g_l, std::nullopt, logits, labels, temperature, entropy, lse, 0, vocab);
  check_gradient(name + " without entropy", c, data<E>(without), without.stride(0), false, rows);
  if constexpr (std::is_same_v<E, float>) {
    Array<BFloat16> bf16({c.tokens, width}, width + 3);
    Array<_Float16> half({c.tokens, width});
    pyrl::logprob_entropy_backward_out_cpu(
        g_l, g_h, logits, labels, temperature, entropy, lse, 0, vocab, bf16.tensor());
    check_gradient(name + " in bf16", c, &bf16[0], width + 3, true, rows);
    pyrl::logprob_entropy_backward_out_cpu(
        g_l, g_h, logits, labels, temperature, entropy, lse, 0, vocab, half.tensor());
    check_gradient(name + " in fp16", c, &half[0], width, true, rows);
  }
  pyrl::logprob_entropy_backward_inplace_cpu(g_l, g_h, logits, labels, temperature, entropy, lse, 0, vocab);
  check_gradient(name + " in place", c, &c.logits[0], c.logits.strides[0], true, rows);
}

template <typename E, typename C = float>
void test_shapes(const std::string& name) {
  test_logprob_entropy<E, C>(name + " 1 column", 1, 1, 1);
  test_logprob_entropy<E, C>(name + " 17 columns", 17, 16, 17);
  test_logprob_entropy<E, C>(name + " a tile", 2048, 2048, 2051);
  test_logprob_entropy<E, C>(name + " a tile and a column", 2049, 2049, 2049);
  test_logprob_entropy<E, C>(name + " a tile and a part", 3100, 3097, 3100);
  test_logprob_entropy<E, C>(name + " two tiles", 4096, 4096, 4096);
}

void test_bad_rows() {
  for (const double bad : {kNan, kInf, -kInf}) {
    Case<float, float> c(40, 40, 40);
    for (int64_t j = 0; j < 40; ++j) c.at(2)[j] = j == 7 || bad < 0 ? static_cast<float>(bad) : 0.0f;
    const Tensor stats = pyrl::logprob_entropy_stats_cpu(
        c.logits.tensor(), c.labels.tensor(), c.temperature.tensor(), 0, 40);
    Array<float> shard({1, 4, 4});
    std::memcpy(&shard[0], data<float>(stats), 64);
    const auto merged = pyrl::logprob_entropy_merge_cpu(shard.tensor(), c.labels.tensor(), c.temperature.tensor());
    check::that(*data<int64_t>(std::get<3>(merged)) == 2, "the bad row of " + std::to_string(bad));
  }
}

void test_temperatures_out_of_range() {
  for (const double bad : {0x1.0c6f79p-20, 1000000.0625, -1.0, kInf, kNan}) {  // fp32(1e-6) is 0x1.0c6f7ap-20
    for (const double fine : {static_cast<double>(1e-6f), 1e6}) {
      Case<float, float> c(40, 40, 40);
      c.temperature = Array<double>::of({fine, 1.0, bad, fine});
      const Tensor stats = pyrl::logprob_entropy_stats_cpu(
          c.logits.tensor(), c.labels.tensor(), c.temperature.tensor(), 0, 40);
      for (int64_t t = 0; t < 4; ++t) {
        check::that(std::isnan(data<float>(stats)[4 * t + 1]) == (t == 2), "temperature " + std::to_string(bad));
      }
    }
  }
}

// --- the ops over tokens

struct Batch {
  Array<float> logprobs, advantages;
  Array<bool> mask, some;
  Array<int64_t> uids;

  explicit Batch(int64_t size) : logprobs({size}), advantages({size}), mask({size}), some({size}), uids({size}) {
    std::mt19937_64 random(size);
    for (int64_t t = 0; t < size; ++t) {  // multiples of 1/8: many ties, and sums that are exact in double
      logprobs[t] = -static_cast<float>(random() % 64) / 8;
      advantages[t] = static_cast<float>(random() % 65) / 8 - 4;
      mask[t] = random() % 5 != 0;
      some[t] = random() % 3 == 0;
      uids[t] = t * t * (t % 2 == 0 ? 1 : -1);
    }
  }
  int64_t size() const { return mask.length; }
};

// SplitMix64's finalizer, of the seed and of the uid, each moved by a constant of its own.
uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}
uint64_t mix(uint64_t seed, uint64_t uid) {
  return mix64(mix64(uid + 0x9E3779B97F4A7C15u) ^ mix64(seed + 0xD1B54A32D192ED03u));
}

void test_mix_uids(const Batch& batch) {
  const Tensor mixes = pyrl::mix_uids_cpu(batch.uids.tensor(), -5);
  for (int64_t t = 0; t < batch.size(); ++t) {
    const uint64_t want = mix(static_cast<uint64_t>(-5), static_cast<uint64_t>(batch.uids[t]));
    check::that(static_cast<uint64_t>(data<int64_t>(mixes)[t]) == want, [&] { return "mix of uid " + std::to_string(t); });
  }
}

void test_covariance(const Batch& batch) {
  const Tensor x = batch.logprobs.tensor(), a = batch.advantages.tensor(), mask = batch.mask.tensor();
  const Tensor result = pyrl::token_covariance_cpu(x, a, mask, pyrl::covariance_sums_cpu(x, a, mask));
  double count = 0, sum_x = 0, sum_a = 0;
  for (int64_t t = 0; t < batch.size(); ++t) {
    if (!batch.mask[t]) continue;
    ++count;
    sum_x += batch.logprobs[t];
    sum_a += batch.advantages[t];
  }
  for (int64_t t = 0; t < batch.size(); ++t) {
    const double want = batch.mask[t] ? (batch.logprobs[t] - sum_x / count) * (batch.advantages[t] - sum_a / count) : 0;
    check::that(data<float>(result)[t] == static_cast<float>(want),
                [&] { return "covariance of token " + std::to_string(t); });
  }
}

// 3% of the valid tokens, of those between the bounds, by the advantage; against a sort.
void test_selection(const Batch& batch, bool by_covariance, bool with_eligible) {
  namespace selection = pyrl::selection;
  const Tensor cov = batch.advantages.tensor(), mask = batch.mask.tensor(), uids = batch.uids.tensor();
  const std::optional<Tensor> eligible = with_eligible ? std::optional(batch.some.tensor()) : std::nullopt;
  Array<int64_t> state({selection::kStateWords});
  for (int round = selection::first_round(by_covariance); round < selection::kDigits; ++round) {
    Array<int32_t> counts({selection::kCounts});
    pyrl::selection_histogram_cpu(
        cov, mask, eligible, uids, -3, kInf, by_covariance, 11, round, state.tensor(), counts.tensor());
    pyrl::selection_advance_cpu(counts.tensor(), by_covariance, round, 3, 100, state.tensor());
  }
  const Tensor marks =
      pyrl::selection_mark_cpu(cov, mask, eligible, uids, -3, kInf, by_covariance, 11, state.tensor());
  std::vector<std::tuple<float, uint64_t, int64_t>> keys;
  int64_t valid = 0;
  for (int64_t t = 0; t < batch.size(); ++t) {
    valid += batch.mask[t];
    if (!batch.mask[t] || !(batch.advantages[t] > -3) || (with_eligible && !batch.some[t])) continue;
    keys.emplace_back(by_covariance ? -batch.advantages[t] : 0, mix(11, static_cast<uint64_t>(batch.uids[t])), t);
  }
  std::sort(keys.begin(), keys.end());
  const auto candidates = static_cast<int64_t>(keys.size());
  const int64_t k = std::min(candidates, std::max<int64_t>(1, valid * 3 / 100));
  std::vector<char> want(batch.size());
  for (int64_t i = 0; i < k; ++i) want[std::get<2>(keys[i])] = 1;
  for (int64_t t = 0; t < batch.size(); ++t) {
    check::that(data<bool>(marks)[t] == static_cast<bool>(want[t]),
                [&] { return "selection of token " + std::to_string(t); });
  }
}

// Clipped to [0.9, 1.1], the selected tokens dropped.
template <typename C>
void test_policy_loss(const Batch& batch) {
  Array<C> logprobs({batch.size()}), old_logprobs({batch.size()}), advantages({batch.size()});
  for (int64_t t = 0; t < batch.size(); ++t) {
    old_logprobs[t] = C(batch.logprobs[t]);
    logprobs[t] = batch.mask[t] ? old_logprobs[t] + C(t % 7 - 3) / 16 : C(kNan);
    advantages[t] = C(batch.advantages[t]);
  }
  const auto [loss, gradient, binds, sums] = pyrl::policy_loss_cpu(
      logprobs.tensor(), old_logprobs.tensor(), advantages.tensor(), batch.mask.tensor(), batch.some.tensor(), 0.9, 1.1,
      kInf, true, 0);
  double ratios = 0;
  for (int64_t t = 0; t < batch.size(); ++t) {
    const double r = std::exp(static_cast<double>(logprobs[t]) - static_cast<double>(old_logprobs[t]));
    const double a = advantages[t], bounded = -std::clamp(r, 0.9, 1.1) * a;
    const bool bound = batch.mask[t] && bounded > -r * a, dropped = !batch.mask[t] || batch.some[t];
    const double want = dropped ? 0 : std::fmax(-r * a, bounded), unit = 2 * std::numeric_limits<C>::epsilon();
    const auto token = [&](const char* what) { return [&, what] { return what + std::to_string(t); }; };
    if (batch.mask[t]) ratios += r;
    check::near(data<C>(loss)[t], want, unit * std::fabs(want), token("loss of token "));
    check::near(data<C>(gradient)[t], bound ? 0 : want, unit * std::fabs(want), token("gradient of token "));
    check::that(data<bool>(binds)[t] == bound, token("bound of token "));
  }
  check::near(data<double>(sums)[1], ratios, 1e-9 * (1 + ratios), "sum of the ratios");
}

// Whatever the ops are given besides, on a device that has no memory.
void test_devices() {
  const auto refuses = [](const std::string& name, auto call) {
    std::string said;
    try {
      call();
    } catch (const std::exception& error) {
      said = error.what();
    }
    check::that(said.find(": got " + name + " on a device") != std::string::npos &&
                    said.find("wanted it on the CPU, where the other arguments are") != std::string::npos,
                name + " elsewhere: " + said);
  };
  const auto elsewhere = [](std::vector<int64_t> sizes, ScalarType dtype) {
    return torch::stable::empty(
        sizes, dtype, std::nullopt, torch::stable::Device(torch::headeronly::DeviceType::Meta));
  };
  Case<float, float> c(40, 40, 40);
  const Tensor x = c.logits.tensor(), y = c.labels.tensor(), t = c.temperature.tensor(), g = c.grad_logprobs.tensor();
  const Array<double> zeros({4});
  const Array<float> statistics({1, 4, 4});
  const Tensor lse = zeros.tensor(), shards = statistics.tensor();
  const Tensor far_y = elsewhere({4}, ScalarType::Long), far_t = elsewhere({4}, ScalarType::Double);
  const Tensor far_g = elsewhere({4}, ScalarType::Float), far_x = elsewhere({4, 40}, ScalarType::Float);
  const auto backward = [&](const Tensor& g_l, const Tensor& g_h, const Tensor& entropy, const Tensor& l, const Tensor& out) {
    pyrl::logprob_entropy_backward_out_cpu(g_l, g_h, x, y, t, entropy, l, 0, 40, out);
  };
  refuses("labels", [&] { pyrl::logprob_entropy_stats_cpu(x, far_y, t, 0, 40); });
  refuses("temperature", [&] { pyrl::logprob_entropy_stats_cpu(x, y, far_t, 0, 40); });
  refuses("temperature", [&] { pyrl::logprob_entropy_combine_cpu(shards, far_t); });
  refuses("labels", [&] { pyrl::logprob_entropy_merge_cpu(shards, far_y, t); });
  refuses("temperature", [&] { pyrl::logprob_entropy_merge_cpu(shards, y, far_t); });
  refuses("grad_logprobs", [&] { backward(far_g, g, g, lse, x); });
  refuses("grad_entropy", [&] { backward(g, far_g, g, lse, x); });
  refuses("entropy", [&] { backward(g, g, far_g, lse, x); });
  refuses("lse", [&] { backward(g, g, g, far_t, x); });
  refuses("the gradient", [&] { backward(g, g, g, lse, far_x); });

  const Batch batch(4);
  const Tensor p = batch.logprobs.tensor(), a = batch.advantages.tensor(), m = batch.mask.tensor(), u = batch.uids.tensor();
  const Array<int64_t> words({pyrl::selection::kStateWords});
  const Array<int32_t> bins({pyrl::selection::kCounts});
  const Tensor far_m = elsewhere({4}, ScalarType::Bool), state = words.tensor(), counts = bins.tensor();
  refuses("advantages", [&] { pyrl::covariance_sums_cpu(p, far_g, m); });
  refuses("mask", [&] { pyrl::covariance_sums_cpu(p, a, far_m); });
  refuses("sums", [&] { pyrl::token_covariance_cpu(p, a, m, elsewhere({19}, ScalarType::Long)); });
  refuses("advantages", [&] { pyrl::policy_loss_cpu(p, p, far_g, m, m, 0.9, 1.1, kInf, true, 0); });
  refuses("selected", [&] { pyrl::policy_loss_cpu(p, p, a, m, far_m, 0.9, 1.1, kInf, true, 0); });
  const auto mark = [&](const Tensor& mask, const Tensor& eligible, const Tensor& uids, const Tensor& with) {
    pyrl::selection_mark_cpu(a, mask, eligible, uids, -3, kInf, true, 11, with);
  };
  refuses("mask", [&] { mark(far_m, m, u, state); });
  refuses("eligible", [&] { mark(m, far_m, u, state); });
  refuses("token_uids", [&] { mark(m, m, far_y, state); });
  refuses("state", [&] { mark(m, m, u, elsewhere({pyrl::selection::kStateWords}, ScalarType::Long)); });
  refuses("counts", [&] {
    pyrl::selection_advance_cpu(elsewhere({pyrl::selection::kCounts}, ScalarType::Int), true, 0, 1, 2, state);
  });
}

}  // namespace

int main() {
  test_shapes<float>("fp32");
  test_shapes<double, double>("fp64");
  test_shapes<BFloat16>("bf16");
  test_shapes<_Float16>("fp16");
  test_bad_rows();
  test_temperatures_out_of_range();
  test_devices();
  for (const int64_t size : {int64_t{0}, int64_t{1}, int64_t{33}, kTwoTasks}) {
    const Batch batch(size);
    test_mix_uids(batch);
    test_covariance(batch);
    test_selection(batch, true, false);
    test_selection(batch, false, true);
    test_policy_loss<float>(batch);
    test_policy_loss<double>(batch);
  }
  return check::report();
}
