// The CUDA kernels of policy_loss, on the host, against its equations written another way.
//
// Sizes by code path: none, one token, 33 (more than a warp), 512 (one block), 1300 (three blocks, the last with a tail),
// 17500 (35 blocks: more than the lanes of the warp that adds them).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "policy_loss/policy_loss_kernels.h"

namespace {

using namespace pyrl::surrogate;

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Flags {
  std::vector<char> storage;
  const bool* data() const { return reinterpret_cast<const bool*>(storage.data()); }
  bool* data() { return reinterpret_cast<bool*>(storage.data()); }
};

template <typename C>
struct Batch {
  std::vector<C> logprobs, old_logprobs, advantages, loss, gradient;
  Flags mask, selected, binds;

  int64_t size() const { return static_cast<int64_t>(logprobs.size()); }
  Tokens<C> tokens(bool with_selected) {
    return {logprobs.data(), old_logprobs.data(), advantages.data(), mask.data(), with_selected ? selected.data() : nullptr,
            loss.data(), gradient.data(), binds.data(), size()};
  }
};

template <typename C>
Batch<C> make_batch(int64_t size) {
  std::mt19937_64 random(size + 1);
  std::normal_distribution<double> normal;
  Batch<C> batch;
  for (int64_t t = 0; t < size; ++t) {
    batch.old_logprobs.push_back(static_cast<C>(-std::fabs(normal(random))));
    const double d = random() % 4 == 0 ? 0 : random() % 4 == 0 ? 1e-7 : 0.3 * normal(random);
    batch.logprobs.push_back(static_cast<C>(batch.old_logprobs.back() + d));
    batch.advantages.push_back(random() % 9 == 0 ? C{0} : static_cast<C>(normal(random)));
    batch.mask.storage.push_back(random() % 5 != 0);
    batch.selected.storage.push_back(random() % 3 == 0);
    if (!batch.mask.storage.back()) batch.logprobs.back() = std::numeric_limits<C>::quiet_NaN();
  }
  batch.loss.assign(size, C{77});
  batch.gradient.assign(size, C{77});
  batch.binds.storage.assign(size, 1);
  return batch;
}

struct Expected {
  double loss = 0, gradient = 0;
  bool binds = false, above = false;
};

// The candidates of the maximum (and of the minimum of the dual clip), of which the chosen one says what the gradient is.
Expected expected(double d, double a, bool selected, const Settings& settings) {
  const double r = std::exp(d);
  const double ppo = std::max(-r * a, -std::clamp(r, settings.ratio_min, settings.ratio_max) * a);
  const double loss = a < 0 ? std::min(ppo, -settings.clip_c * a) : ppo;
  Expected want{loss, loss == -r * a ? loss : 0.0, loss != -r * a, false};
  want.above = want.binds && r > 1;
  if (!selected) return want;
  if (settings.drop_selected) return {0, 0, want.binds, want.above};
  want.loss += settings.kl_coef * std::fabs(d);
  if (d >= 1e-6) want.gradient += settings.kl_coef;
  if (d <= -1e-6) want.gradient -= settings.kl_coef;
  return want;
}

template <typename C>
void test_case(const std::string& name, int64_t size, bool with_selected, const Settings& settings) {
  Batch<C> batch = make_batch<C>(size);
  std::vector<double> partial(blocks_of(size) * kSums, NAN), sums(kSums, NAN);
  const int error = launch(batch.tokens(with_selected), settings, partial.data(), sums.data(), nullptr);
  check::that(error == 0, name + " is launched");
  const double unit = std::numeric_limits<C>::epsilon();
  std::vector<double> want_sums(kSums);
  for (int64_t t = 0; t < size; ++t) {
    const auto token = [&](const char* what) { return [&, what] { return name + what + std::to_string(t); }; };
    Expected want;
    if (batch.mask.storage[t]) {
      const double d = static_cast<double>(batch.logprobs[t]) - static_cast<double>(batch.old_logprobs[t]);
      const bool selected = with_selected && batch.selected.storage[t];
      want = expected(d, batch.advantages[t], selected, settings);
      want_sums[kSelected] += selected;
      want_sums[kRatio] += std::exp(d);
      want_sums[kApproxKL] += std::exp(d) - 1 - d;
      want_sums[kClippedHigh] += want.above;
      want_sums[kClippedLow] += want.binds && !want.above;
      want_sums[kPenalty] += selected && !settings.drop_selected ? settings.kl_coef * std::fabs(d) : 0;
    }
    check::near(batch.loss[t], want.loss, 4 * unit * (1 + std::fabs(want.loss)), token(" loss of token "));
    check::near(batch.gradient[t], want.gradient, 4 * unit * (1 + std::fabs(want.gradient)), token(" gradient of token "));
    check::that(batch.binds.storage[t] == want.binds, token(" binds at token "));
  }
  for (int s = 0; s < kSums; ++s) {
    check::near(sums[s], want_sums[s], 1e-11 * (1 + size), name + " sum " + std::to_string(s));
  }
}

}  // namespace

int main() {
  const Settings plain{0, kInf, kInf, 0, true}, clip{0.9, 1.1, 1.2, 0, true}, kl_cov{0, kInf, kInf, 0.5, false};
  for (const int64_t size : check::kRaces ? std::vector{1300} : std::vector{0, 1, 33, 512, 1300}) {
    test_case<float>("clip_cov of " + std::to_string(size), size, true, clip);
  }
  if (check::kRaces) return check::report();
  test_case<float>("kl_cov", 1300, true, kl_cov);
  test_case<double>("plain ratio", 17500, false, plain);
  return check::report();
}
