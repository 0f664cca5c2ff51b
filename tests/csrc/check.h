// What the C++ test programs report with: a failure is printed and counted, and the program's exit status is 1. With
// CHECK_STOP_AT_FIRST in the environment the first failure ends the program. What was checked is a string or, where it is
// checked often, a function that makes one: making them took longer than the checks.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace check {

// Whether this program looks for races. The order of threads does not depend on the numbers, which the other build checks
// in all cases; here one case a path is enough.
#ifdef __SANITIZE_THREAD__
inline constexpr bool kRaces = true;
#else
inline constexpr bool kRaces = false;
#endif

inline int64_t checks = 0;
inline int64_t failures = 0;

inline std::string text(const std::string& what) { return what; }
template <typename What>
auto text(const What& what) -> decltype(what()) { return what(); }

template <typename What>
void that(bool holds, const What& what) {
  ++checks;
  if (holds) return;
  if (++failures <= 20) std::printf("FAILED %s\n", text(what).c_str());
  if (std::getenv("CHECK_STOP_AT_FIRST") != nullptr) {
    std::fflush(stdout);
    std::_Exit(1);
  }
}

template <typename What>
void near(double got, double want, double tolerance, const What& what) {
  const bool same = got == want || (std::isnan(got) && std::isnan(want));
  that(same || std::fabs(got - want) <= tolerance,
       [&] { return text(what) + ": got " + std::to_string(got) + ", wanted " + std::to_string(want); });
}

// The exit status.
inline int report() {
  std::printf("%lld checks, %lld failed\n", static_cast<long long>(checks), static_cast<long long>(failures));
  return failures == 0 && checks > 0 ? 0 : 1;
}

}  // namespace check
