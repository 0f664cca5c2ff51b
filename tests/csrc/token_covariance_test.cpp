// The CUDA kernels of token_covariance, on the host, against sums in 128-bit integers and a quotient in quadruple precision.
//
// Sizes by code path: none, one token, 33 (more than a warp), 8192 (one block of the sums), 9500 (a second one with a tail;
// and several turns of a block of the result).
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "token_covariance/token_covariance_kernels.h"

namespace {

using namespace pyrl::covariance;

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Batch {
  std::vector<float> logprobs, advantages;
  std::vector<char> mask;

  Tokens tokens() const {
    return {logprobs.data(), advantages.data(), reinterpret_cast<const bool*>(mask.data()),
            static_cast<int64_t>(mask.size())};
  }
  bool used(size_t t) const { return mask[t] && std::isfinite(logprobs[t]) && std::isfinite(advantages[t]); }
};

// Of numbers that are 0 or multiples of 2^-63 below 2^31.
double mean(const Batch& batch, const std::vector<float>& values) {
  __int128 sum = 0;
  int64_t count = 0;
  for (size_t t = 0; t < values.size(); ++t) {
    if (!batch.used(t)) continue;
    sum += static_cast<__int128>(static_cast<__float128>(values[t]) * 0x1p63);
    ++count;
  }
  return count == 0 ? 0 : static_cast<double>(static_cast<__float128>(sum) / count * 0x1p-63);
}

uint32_t bits(float x) {
  uint32_t word;
  std::memcpy(&word, &x, sizeof word);
  return word;
}

std::vector<float> covariance_of(const Batch& batch, int max_blocks) {
  std::vector<int64_t> sums(kSums);
  launch_sums(batch.tokens(), sums.data(), nullptr);
  std::vector<float> result(batch.mask.size(), 77.0f);
  launch_covariance(batch.tokens(), sums.data(), result.data(), nullptr, max_blocks);
  return result;
}

void check_covariance(const std::string& name, const Batch& batch, int max_blocks, double mean_x, double mean_y) {
  const std::vector<float> got = covariance_of(batch, max_blocks);
  for (size_t t = 0; t < got.size(); ++t) {
    float want = static_cast<float>((batch.logprobs[t] - mean_x) * (batch.advantages[t] - mean_y));
    if (!batch.used(t)) want = batch.mask[t] ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
    check::that(bits(got[t]) == bits(want), [&] { return name + " token " + std::to_string(t); });
  }
}

void test_size(int64_t size, int max_blocks) {
  std::mt19937_64 random(size + 1);
  std::normal_distribution<float> normal;
  Batch batch;
  const float special[] = {NAN, kInf, -kInf, 0.0f, -0.0f, 0x1.8p-40f, -0x1.234568p30f};
  for (int64_t t = 0; t < size; ++t) {
    const float scale = std::ldexp(1.0f, static_cast<int>(random() % 50) - 20);
    batch.logprobs.push_back(random() % 20 == 0 ? special[random() % 7] : -std::fabs(normal(random)) * scale);
    batch.advantages.push_back(random() % 20 == 0 ? special[random() % 7] : normal(random));
    for (float* x : {&batch.logprobs.back(), &batch.advantages.back()}) {
      if (std::isfinite(*x)) *x = static_cast<float>(std::ldexp(std::nearbyint(std::ldexp(*x, 60)), -60));
    }
    batch.mask.push_back(random() % 4 != 0);
  }
  const double mean_x = mean(batch, batch.logprobs), mean_y = mean(batch, batch.advantages);
  check_covariance(std::to_string(size) + " tokens", batch, max_blocks, mean_x, mean_y);
}

// Exponents of every window of the sum: the largest float twice with opposite signs leaves the third, whose third is the mean.
void test_exponents() {
  constexpr float kLargest = std::numeric_limits<float>::max();
  for (int exponent = -149; exponent < 128; exponent += 23) {
    const float x = std::ldexp(1.0f, exponent);
    const Batch batch{{kLargest, -x, -kLargest}, {kLargest, x, -kLargest}, {1, 1, 1}};
    check_covariance("2^" + std::to_string(exponent), batch, kMaxBlocks, -static_cast<double>(x) / 3,
                     static_cast<double>(x) / 3);
  }
}

// Sums of the largest magnitude: 8192 times the largest float in one block, 32 in a thread.
void test_largest_sums() {
  constexpr float kLargest = std::numeric_limits<float>::max();
  const size_t size = 8193;
  const Batch batch{std::vector<float>(size, -kLargest), std::vector<float>(size, kLargest), std::vector<char>(size, 1)};
  check_covariance("largest", batch, 1, -static_cast<double>(kLargest), static_cast<double>(kLargest));
}

// Means that lie on, just above and just below the middle of two doubles: what breaks the tie is a bit that is 53 to 250
// bits below the first, in the quotient's second word, in the remainder, or in a digit that was not divided any more.
void test_ties() {
  using namespace pyrl::exact;
  const auto mean_of = [](std::initializer_list<float> numbers, int64_t count) {
    int64_t windows[kWindows] = {}, words[kWords];
    for (const float x : numbers) {
      const Term one = term(x);
      windows[one.window] += one.value;
    }
    for (int word = 0; word < kWords; ++word) words[word] = carried(windows, word);
    return pyrl::exact::mean(words, count);
  };
  for (const int scale : {0, 1, 5, 31, 40, 63, 74}) {
    const float one = std::ldexp(1.0f, scale), half = std::ldexp(1.0f, scale - 53);  // half a unit in the last place of one
    const double at = one, unit = std::ldexp(1.0, scale - 52);
    const std::string name = "2^" + std::to_string(scale);
    check::that(mean_of({one, half}, 1) == at, name + ": a tie goes to the even one");
    check::that(mean_of({one, 2 * half, half}, 1) == at + 2 * unit, name + ": upwards where that is the even one");
    check::that(mean_of({-one, -half}, 1) == -at, name + ": a tie of negative numbers");
    for (int below = scale - 54; below >= -149; --below) {
      const float bit = std::ldexp(1.0f, below);
      const std::string which = name + " and 2^" + std::to_string(below);
      check::that(mean_of({one, half, bit}, 1) == at + unit, which + ": above the middle");
      check::that(mean_of({one, half, -bit}, 1) == at, which + ": below the middle");
      check::that(mean_of({-one, -half, -bit}, 1) == -at - unit, which + ": above the middle, negative");
      check::that(mean_of({one, 2 * half, half, -bit}, 1) == at + unit, which + ": below the middle, to the odd one");
      check::that(mean_of({4 * one, 4 * half, 4 * bit}, 4) == at + unit, which + ": of four");
    }
    // A third of 3 (one + half) 2^0 is on the middle; a unit of the sum more leaves a remainder, two a larger one.
    const float least = std::ldexp(1.0f, -149);
    check::that(mean_of({2 * one, one, 2 * half, half}, 3) == at, name + ": a tie of three");
    check::that(mean_of({2 * one, one, 2 * half, half, least}, 3) == at + unit, name + ": a remainder of one");
    check::that(mean_of({2 * one, one, 2 * half, half, 2 * least}, 3) == at + unit, name + ": a remainder of two");
    check::that(mean_of({2 * one, one, 2 * half, half, -least}, 3) == at, name + ": just below a tie of three");
  }
}

}  // namespace

int main() {
  test_size(9500, 2);
  if (check::kRaces) return check::report();  // two blocks of either kernel, several turns of the second
  for (const int64_t size : {0, 1, 33, 8192}) test_size(size, kMaxBlocks);
  test_ties();
  test_exponents();
  test_largest_sums();
  return check::report();
}
