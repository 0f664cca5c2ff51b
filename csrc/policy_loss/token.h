// One token of the surrogate (formulas: policy_loss.h), free of torch: the CPU and the CUDA kernel both call it.
#pragma once

#include <cmath>
#include <cstdint>

namespace pyrl::surrogate {

struct Settings {
  double ratio_min, ratio_max, clip_c, kl_coef;
  bool drop_selected;
};

// What is summed over valid tokens, in this order.
enum Sum { kSelected, kRatio, kApproxKL, kClippedHigh, kClippedLow, kPenalty, kSums };

// Rounding between two forward passes of the same weights; below it sign(d) is noise.
inline constexpr double kMinLogRatio = 1e-6;

// C: float or double. selected may be null: no token is.
template <typename C>
struct Tokens {
  const C* logprobs;
  const C* old_logprobs;
  const C* advantages;
  const bool* mask;
  const bool* selected;
  C* loss;
  C* gradient;
  bool* binds;
  int64_t count;
};

template <typename C>
struct Token {
  C loss, gradient;
  bool binds;
  double sums[kSums];
};

template <typename C>
constexpr Token<C> token(C logprob, C old_logprob, C advantage, bool selected, const Settings& settings) {
  const double d = static_cast<double>(logprob) - static_cast<double>(old_logprob);
  const double a = advantage;
  const double ratio = std::exp(d);
  double loss = -ratio * a;
  double gradient = loss;
  bool binds = false;
  const double bounded = ratio < settings.ratio_min ? settings.ratio_min
                         : ratio > settings.ratio_max ? settings.ratio_max
                                                      : ratio;
  if (-bounded * a > loss) {
    loss = -bounded * a;
    binds = true;
  }
  if (a < 0 && loss > -settings.clip_c * a) {
    loss = -settings.clip_c * a;
    binds = true;
  }
  if (binds) gradient = 0;
  const bool above = binds && ratio > 1;  // every upper bound is above 1, the lower one is not

  double penalty = 0;
  if (selected) {
    if (settings.drop_selected) {
      loss = gradient = 0;
    } else {
      const double distance = std::fabs(d);
      penalty = settings.kl_coef * distance;
      loss += penalty;
      gradient += distance < kMinLogRatio ? 0.0 : std::copysign(settings.kl_coef, d);
    }
  }
  return {
      static_cast<C>(loss),
      static_cast<C>(gradient),
      binds,
      {selected ? 1.0 : 0.0, ratio, std::expm1(d) - d, above ? 1.0 : 0.0, binds && !above ? 1.0 : 0.0, penalty}};
}

// Token t, written to its outputs; what it adds to the sums.
template <typename C>
constexpr Token<C> run_token(const Tokens<C>& tokens, int64_t t, const Settings& settings) {
  Token<C> result{};
  if (tokens.mask[t]) {
    const bool selected = tokens.selected != nullptr && tokens.selected[t];
    result = token(tokens.logprobs[t], tokens.old_logprobs[t], tokens.advantages[t], selected, settings);
  }
  tokens.loss[t] = result.loss;
  tokens.gradient[t] = result.gradient;
  tokens.binds[t] = result.binds;
  return result;
}

}  // namespace pyrl::surrogate
