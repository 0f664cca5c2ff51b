// The one place where ops are declared. Autograd and fake (shape-only) implementations: pyrl/ops.
#include <torch/csrc/stable/library.h>

#include "counter/counter.h"
#include "logprob_entropy/logprob_entropy.h"
#include "token_covariance/token_covariance.h"

STABLE_TORCH_LIBRARY(pyrl, m) {
  m.def("mix_uids(Tensor uids, int seed) -> Tensor");
  m.def("covariance_sums(Tensor logprobs, Tensor advantages, Tensor mask) -> Tensor");
  m.def(
      "logprob_entropy_stats(Tensor logits, Tensor labels, Tensor temperature, int vocab_start, int vocab_size)"
      " -> Tensor");
  m.def(
      "logprob_entropy_merge(Tensor stats, Tensor labels, Tensor temperature)"
      " -> (Tensor logprobs, Tensor entropy, Tensor lse, Tensor bad_row)");
  m.def(
      "logprob_entropy_backward(Tensor grad_logprobs, Tensor grad_entropy, Tensor logits, Tensor labels,"
      " Tensor temperature, Tensor entropy, Tensor lse, int vocab_start, int vocab_size) -> Tensor");
  m.def(
      "logprob_entropy_backward_(Tensor grad_logprobs, Tensor grad_entropy, Tensor(a!) logits, Tensor labels,"
      " Tensor temperature, Tensor entropy, Tensor lse, int vocab_start, int vocab_size) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pyrl, CPU, m) {
  m.impl("mix_uids", TORCH_BOX(&pyrl::mix_uids_cpu));
  m.impl("covariance_sums", TORCH_BOX(&pyrl::covariance_sums_cpu));
  m.impl("logprob_entropy_stats", TORCH_BOX(&pyrl::logprob_entropy_stats_cpu));
  m.impl("logprob_entropy_merge", TORCH_BOX(&pyrl::logprob_entropy_merge_cpu));
  m.impl("logprob_entropy_backward", TORCH_BOX(&pyrl::logprob_entropy_backward_cpu));
  m.impl("logprob_entropy_backward_", TORCH_BOX(&pyrl::logprob_entropy_backward_inplace_cpu));
}
