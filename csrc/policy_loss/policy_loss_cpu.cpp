#include "policy_loss/policy_loss.h"

#include <algorithm>
#include <vector>

#include "policy_loss/arguments.h"

namespace pyrl {

using surrogate::kSums;
using torch::stable::Tensor;

namespace {

constexpr int64_t kBlock = 4096;  // sums are kept per block and added in order: the same for any number of threads

template <typename C>
void run(const surrogate::Tokens<C>& tokens, const surrogate::Settings& settings, double* sums) {
  const int64_t blocks = (tokens.count + kBlock - 1) / kBlock;
  std::vector<double> partial(blocks * kSums, 0.0);
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      double* mine = partial.data() + block * kSums;
      for (int64_t t = block * kBlock; t < std::min(tokens.count, (block + 1) * kBlock); ++t) {
        const surrogate::Token<C> token = surrogate::run_token(tokens, t, settings);
        for (int i = 0; i < kSums; ++i) mine[i] += token.sums[i];
      }
    }
  });
  for (int i = 0; i < kSums; ++i) {
    sums[i] = 0;
    for (int64_t block = 0; block < blocks; ++block) sums[i] += partial[block * kSums + i];
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> policy_loss_cpu(
    const Tensor& logprobs,
    const std::optional<Tensor>& old_logprobs,
    const Tensor& advantages,
    const Tensor& mask,
    const std::optional<Tensor>& selected,
    double ratio_min,
    double ratio_max,
    double clip_c,
    bool drop_selected,
    double kl_coef) {
  const surrogate::Arguments arguments(logprobs, old_logprobs, advantages, mask, selected);
  const surrogate::Settings settings{ratio_min, ratio_max, clip_c, kl_coef, drop_selected};
  if (arguments.is_double()) {
    run(arguments.tokens<double>(), settings, arguments.sums_data());
  } else {
    run(arguments.tokens<float>(), settings, arguments.sums_data());
  }
  return {arguments.loss, arguments.gradient, arguments.binds, arguments.sums};
}

}  // namespace pyrl
