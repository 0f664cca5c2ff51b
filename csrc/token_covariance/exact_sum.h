// Exact sums of fp32 numbers and their correctly rounded mean, in integers and free of torch: the CPU and the CUDA
// kernels both call it, so both get the same bits.
//
// An fp32 number is an integer M (|M| < 2^24) times 2^(s - 149), s in [0, 253]. M 2^(s mod 32) is added to window s / 32,
// an int64 of weight 2^(32 window - 149). Before a window can overflow its low and high halves are carried into words of
// the same weights, |addend| < 2^32; words are int64 as well, so a sum cannot wrap below 2^31 numbers. Words add as
// integers: neither order nor partition changes a bit.
#pragma once

#include <bit>
#include <cstdint>

namespace pyrl::exact {

inline constexpr int kWindows = 8;
inline constexpr int kWords = kWindows + 1;
inline constexpr int kMaxTerms = 128;  // that a window may hold between two carries: 2^7 2^55 < 2^63

constexpr bool finite(float x) {
  return (std::bit_cast<uint32_t>(x) & 0x7F800000u) != 0x7F800000u;
}

struct Term {
  int window;
  int64_t value;  // |value| < 2^55
};

constexpr Term term(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t exponent = (bits >> 23) & 0xFF;
  // A normal number has a hidden bit; a subnormal one shares the exponent of the smallest normal.
  const int64_t mantissa = (bits & 0x7FFFFF) | (exponent == 0 ? 0 : 0x800000);
  const uint32_t shift = exponent == 0 ? 0 : exponent - 1;
  const int64_t value = mantissa << (shift % 32);
  return {static_cast<int>(shift / 32), (bits >> 31) ? -value : value};
}

// What word `word` gets from the windows: the low half of its own and the high half of the one below.
constexpr int64_t carried(const int64_t* windows, int word) {
  const int64_t low = word < kWindows ? static_cast<int32_t>(windows[word]) : 0;
  if (word == 0) return low;
  const int64_t below = windows[word - 1];
  return low + ((below - static_cast<int32_t>(below)) >> 32);
}

// The sum as sign and magnitude, 32 bits a digit, least significant first.
struct Magnitude {
  static constexpr int kDigits = kWords + 1;  // 2^31 numbers below 2^277: less than 2^308
  uint32_t digits[kDigits];
  bool negative;
};

constexpr Magnitude magnitude(const int64_t* words) {
  Magnitude sum{};
  int64_t carry = 0;
  for (int i = 0; i < kWords; ++i) {
    carry += words[i];
    sum.digits[i] = static_cast<uint32_t>(carry);
    carry >>= 32;
  }
  sum.digits[kWords] = static_cast<uint32_t>(carry);
  sum.negative = carry < 0;
  if (sum.negative) {
    uint64_t plus = 1;  // two's complement
    for (uint32_t& digit : sum.digits) {
      plus += static_cast<uint32_t>(~digit);
      digit = static_cast<uint32_t>(plus);
      plus >>= 32;
    }
  }
  return sum;
}

// Of x > 0. (In device code nvcc 13.0 takes std::countl_zero for the constant 64.)
constexpr int leading_zeros(uint64_t x) {
  int zeros = 0;
  for (int step = 32; step > 0; step /= 2) {
    if (x >> (64 - step) != 0) continue;
    x <<= step;
    zeros += step;
  }
  return zeros;
}

// 2^exponent (m + (sticky ? something below 1 : 0)) / 2^63, m >= 2^63, to the nearest double, ties to even.
constexpr double rounded(uint64_t m, bool sticky, int exponent, bool negative) {
  const uint64_t rest = m & 0x7FF;
  const bool up = rest > 0x400 || (rest == 0x400 && (sticky || ((m >> 11) & 1)));
  // Adding the hidden bit, or a carry out of the fraction, steps the exponent.
  const uint64_t bits = (static_cast<uint64_t>(exponent + 1022) << 52) + (m >> 11) + up;
  return std::bit_cast<double>(bits | (negative ? 1ull << 63 : 0));
}

// The mean of `count` < 2^31 numbers, rounded once; 0 for none. The double is normal: |mean| is 0 or in [2^-180, 2^128].
constexpr double mean(const int64_t* words, int64_t count) {
  constexpr int kLeading = 4;  // digits that are divided
  const Magnitude sum = magnitude(words);
  int top = -1;             // where the first digit other than 0 stands
  uint64_t leading[2] = {};  // from there on the first four digits, zeros below the last one
  bool sticky = false;      // whether anything other than 0 follows
  for (int i = Magnitude::kDigits - 1; i > -kLeading; --i) {
    const uint32_t digit = i < 0 ? 0 : sum.digits[i];
    if (top < 0 && digit != 0) top = i;
    if (top < 0) continue;
    if (top - i < kLeading) {
      leading[0] = (leading[0] << 32) | (leading[1] >> 32);
      leading[1] = (leading[1] << 32) | digit;
    } else {
      sticky = sticky || digit != 0;
    }
  }
  if (count == 0 || top < 0) return 0;
  // Long division, a digit at a time. The quotient is at least 2^65: the first digit is at least 1, count below 2^31.
  const uint64_t divisor = static_cast<uint64_t>(count);
  uint64_t quotient[2] = {};
  uint64_t remainder = 0;
  for (int half = 0; half < 2; ++half) {
    for (int shift = 32; shift >= 0; shift -= 32) {
      remainder = (remainder << 32) | ((leading[half] >> shift) & 0xFFFFFFFF);
      const uint64_t digit = remainder / divisor;
      remainder -= digit * divisor;
      quotient[half] |= digit << shift;
    }
  }
  const int zeros = leading_zeros(quotient[0]);
  const uint64_t m = zeros == 0 ? quotient[0] : (quotient[0] << zeros) | (quotient[1] >> (64 - zeros));
  sticky = sticky || remainder != 0 || (quotient[1] << zeros) != 0;
  return rounded(m, sticky, 127 - zeros + 32 * (top - 3) - 149, sum.negative);
}

}  // namespace pyrl::exact
