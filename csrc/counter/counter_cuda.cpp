#include "counter/counter.h"

#include <torch/csrc/stable/ops.h>

#include "counter/counter_kernels.h"
#include "cuda/stream.h"

namespace pyrl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor mix_uids_cuda(const Tensor& uids, int64_t seed) {
  STD_TORCH_CHECK(uids.scalar_type() == ScalarType::Long && uids.dim() == 1, "mix_uids: uids must be int64 [T]");
  const cuda::Scope scope(uids);
  const Tensor input = torch::stable::contiguous(uids);
  Tensor output = torch::stable::new_empty(input, input.sizes());
  const int error = counter::launch_mix(
      static_cast<const int64_t*>(input.const_data_ptr()), input.numel(), static_cast<uint64_t>(seed),
      static_cast<int64_t*>(output.mutable_data_ptr()), scope.stream());
  cuda::check(error, "mix_uids");
  return output;
}

}  // namespace pyrl
