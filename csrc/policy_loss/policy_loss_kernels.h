// Launch of the CUDA kernels of policy_loss.h.
#pragma once

#include <cstdint>

#include "policy_loss/token.h"

namespace pyrl::surrogate {

// Blocks of the first kernel: each leaves kSums partial sums.
int64_t blocks_of(int64_t tokens);

// Pointers on the device; partial fp64 [blocks_of(count), kSums], sums fp64 [kSums]. Returns CUDA's error, 0 for none.
template <typename C>
int launch(const Tokens<C>& tokens, const Settings& settings, double* partial, double* sums, void* stream);

extern template int launch(const Tokens<float>&, const Settings&, double*, double*, void*);
extern template int launch(const Tokens<double>&, const Settings&, double*, double*, void*);

}  // namespace pyrl::surrogate
