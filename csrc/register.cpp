// The one place where ops are declared. Autograd and fake (shape-only) implementations: pyrl/ops.
#include <torch/csrc/stable/library.h>

#include "counter/counter.h"
#include "logprob_entropy/logprob_entropy.h"
#include "policy_loss/policy_loss.h"
#include "selection/selection.h"
#include "token_covariance/token_covariance.h"

STABLE_TORCH_LIBRARY(pyrl, m) {
  m.def("mix_uids(Tensor uids, int seed) -> Tensor");
  m.def("covariance_sums(Tensor logprobs, Tensor advantages, Tensor mask) -> Tensor");
  m.def("token_covariance(Tensor logprobs, Tensor advantages, Tensor mask, Tensor sums) -> Tensor");
  m.def(
      "selection_histogram(Tensor cov, Tensor mask, Tensor? eligible, Tensor token_uids, float lower, float upper,"
      " bool by_covariance, int seed, int round, Tensor state, Tensor(a!) counts) -> ()");
  m.def(
      "selection_advance(Tensor counts, bool by_covariance, int round, int numerator, int denominator,"
      " Tensor(a!) state) -> ()");
  m.def(
      "selection_mark(Tensor cov, Tensor mask, Tensor? eligible, Tensor token_uids, float lower, float upper,"
      " bool by_covariance, int seed, Tensor state) -> Tensor");
  m.def(
      "logprob_entropy_stats(Tensor logits, Tensor labels, Tensor temperature, int vocab_start, int vocab_size)"
      " -> Tensor");
  m.def("logprob_entropy_combine(Tensor stats, Tensor temperature) -> Tensor");
  m.def(
      "logprob_entropy_merge(Tensor stats, Tensor labels, Tensor temperature)"
      " -> (Tensor logprobs, Tensor entropy, Tensor lse, Tensor bad_row)");
  m.def(
      "logprob_entropy_backward(Tensor grad_logprobs, Tensor? grad_entropy, Tensor logits, Tensor labels,"
      " Tensor temperature, Tensor entropy, Tensor lse, int vocab_start, int vocab_size) -> Tensor");
  m.def(
      "logprob_entropy_backward_(Tensor grad_logprobs, Tensor? grad_entropy, Tensor(a!) logits, Tensor labels,"
      " Tensor temperature, Tensor entropy, Tensor lse, int vocab_start, int vocab_size) -> ()");
  m.def(
      "logprob_entropy_backward_out(Tensor grad_logprobs, Tensor? grad_entropy, Tensor logits, Tensor labels,"
      " Tensor temperature, Tensor entropy, Tensor lse, int vocab_start, int vocab_size, Tensor(a!) out) -> ()");
  m.def(
      "policy_loss(Tensor logprobs, Tensor? old_logprobs, Tensor advantages, Tensor mask, Tensor? selected,"
      " float ratio_min, float ratio_max, float clip_c, bool drop_selected, float kl_coef)"
      " -> (Tensor loss, Tensor gradient, Tensor binds, Tensor sums)");
}

STABLE_TORCH_LIBRARY_IMPL(pyrl, CPU, m) {
  m.impl("mix_uids", TORCH_BOX(&pyrl::mix_uids_cpu));
  m.impl("covariance_sums", TORCH_BOX(&pyrl::covariance_sums_cpu));
  m.impl("token_covariance", TORCH_BOX(&pyrl::token_covariance_cpu));
  m.impl("selection_histogram", TORCH_BOX(&pyrl::selection_histogram_cpu));
  m.impl("selection_advance", TORCH_BOX(&pyrl::selection_advance_cpu));
  m.impl("selection_mark", TORCH_BOX(&pyrl::selection_mark_cpu));
  m.impl("logprob_entropy_stats", TORCH_BOX(&pyrl::logprob_entropy_stats_cpu));
  m.impl("logprob_entropy_combine", TORCH_BOX(&pyrl::logprob_entropy_combine_cpu));
  m.impl("logprob_entropy_merge", TORCH_BOX(&pyrl::logprob_entropy_merge_cpu));
  m.impl("logprob_entropy_backward", TORCH_BOX(&pyrl::logprob_entropy_backward_cpu));
  m.impl("logprob_entropy_backward_", TORCH_BOX(&pyrl::logprob_entropy_backward_inplace_cpu));
  m.impl("logprob_entropy_backward_out", TORCH_BOX(&pyrl::logprob_entropy_backward_out_cpu));
  m.impl("policy_loss", TORCH_BOX(&pyrl::policy_loss_cpu));
}

#ifdef PYRL_HAVE_CUDA
STABLE_TORCH_LIBRARY_IMPL(pyrl, CUDA, m) {
  m.impl("mix_uids", TORCH_BOX(&pyrl::mix_uids_cuda));
  m.impl("covariance_sums", TORCH_BOX(&pyrl::covariance_sums_cuda));
  m.impl("token_covariance", TORCH_BOX(&pyrl::token_covariance_cuda));
  m.impl("selection_histogram", TORCH_BOX(&pyrl::selection_histogram_cuda));
  m.impl("selection_advance", TORCH_BOX(&pyrl::selection_advance_cuda));
  m.impl("selection_mark", TORCH_BOX(&pyrl::selection_mark_cuda));
  m.impl("logprob_entropy_stats", TORCH_BOX(&pyrl::logprob_entropy_stats_cuda));
  m.impl("logprob_entropy_combine", TORCH_BOX(&pyrl::logprob_entropy_combine_cuda));
  m.impl("logprob_entropy_merge", TORCH_BOX(&pyrl::logprob_entropy_merge_cuda));
  m.impl("logprob_entropy_backward", TORCH_BOX(&pyrl::logprob_entropy_backward_cuda));
  m.impl("logprob_entropy_backward_", TORCH_BOX(&pyrl::logprob_entropy_backward_inplace_cuda));
  m.impl("logprob_entropy_backward_out", TORCH_BOX(&pyrl::logprob_entropy_backward_out_cuda));
  m.impl("policy_loss", TORCH_BOX(&pyrl::policy_loss_cuda));
}
#endif
