#include <cuda_runtime_api.h>

#include "cuda/stream.h"

namespace pyrl::cuda {

const char* error_name(int error) {
  return cudaGetErrorName(static_cast<cudaError_t>(error));
}

}  // namespace pyrl::cuda
