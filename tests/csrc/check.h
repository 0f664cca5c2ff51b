// What the C++ test programs report with: a failure is printed and counted, and the program's exit status is 1. With
// CHECK_STOP_AT_FIRST in the environment the first failure ends the program.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace check {

inline int64_t checks = 0;
inline int64_t failures = 0;

inline void that(bool holds, const std::string& what) {
  ++checks;
  if (holds) return;
  if (++failures <= 20) std::printf("FAILED %s\n", what.c_str());
  if (std::getenv("CHECK_STOP_AT_FIRST") != nullptr) {
    std::fflush(stdout);
    std::_Exit(1);
  }
}

inline void near(double got, double want, double tolerance, const std::string& what) {
  const bool same = got == want || (std::isnan(got) && std::isnan(want));
  const std::string numbers = ": got " + std::to_string(got) + ", wanted " + std::to_string(want);
  that(same || std::fabs(got - want) <= tolerance, what + numbers);
}

// The exit status.
inline int report() {
  std::printf("%lld checks, %lld failed\n", static_cast<long long>(checks), static_cast<long long>(failures));
  return failures == 0 && checks > 0 ? 0 : 1;
}

}  // namespace check
