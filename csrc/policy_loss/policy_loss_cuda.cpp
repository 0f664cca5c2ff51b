#include "policy_loss/policy_loss.h"

#include "cuda/stream.h"
#include "policy_loss/arguments.h"
#include "policy_loss/policy_loss_kernels.h"

namespace pyrl {

using surrogate::kSums;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor, Tensor> policy_loss_cuda(
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
  const cuda::Scope scope(logprobs);
  const surrogate::Arguments arguments(logprobs, old_logprobs, advantages, mask, selected);
  const surrogate::Settings settings{ratio_min, ratio_max, clip_c, kl_coef, drop_selected};
  const int64_t blocks = surrogate::blocks_of(arguments.count());
  Tensor partial = torch::stable::new_empty(arguments.sums, {blocks * kSums});
  auto* partial_data = static_cast<double*>(partial.mutable_data_ptr());
  const int error =
      arguments.is_double()
          ? surrogate::launch(arguments.tokens<double>(), settings, partial_data, arguments.sums_data(), scope.stream())
          : surrogate::launch(arguments.tokens<float>(), settings, partial_data, arguments.sums_data(), scope.stream());
  cuda::check(error, "policy_loss");
  return {arguments.loss, arguments.gradient, arguments.binds, arguments.sums};
}

}  // namespace pyrl
