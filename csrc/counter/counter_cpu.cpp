#include "counter/counter.h"

#include <torch/csrc/stable/ops.h>

#include "counter/mix.h"

namespace pyrl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor mix_uids_cpu(const Tensor& uids, int64_t seed) {
  STD_TORCH_CHECK(uids.scalar_type() == ScalarType::Long && uids.dim() == 1, "mix_uids: uids must be int64 [T]");
  const Tensor input = torch::stable::contiguous(uids);
  Tensor output = torch::stable::new_empty(input, input.sizes());
  const auto* in = static_cast<const int64_t*>(input.const_data_ptr());
  auto* out = static_cast<int64_t*>(output.mutable_data_ptr());
  torch::stable::parallel_for(0, input.numel(), 1 << 15, [=](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      out[t] = static_cast<int64_t>(mix(static_cast<uint64_t>(seed), static_cast<uint64_t>(in[t])));
    }
  });
  return output;
}

}  // namespace pyrl
