// Where a CUDA op of the LibTorch stable ABI launches its kernels.
#pragma once

#include <cstdint>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

// Weak, since only a CUDA build of torch has it (in libtorch_cuda): this library is also compiled against, and loaded by,
// a torch without CUDA, where it is null and no CUDA op can be called.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace pyrl::cuda {

// Makes the device of a tensor the current one while in scope, and knows PyTorch's current stream on it.
class Scope {
 public:
  explicit Scope(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "pyrl: this torch has no CUDA; install a CUDA build");
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
  }
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

// What CUDA calls `error` (error.cpp).
const char* error_name(int error);

// `error`: what a launch returned.
inline void check(int error, const char* op) {
  STD_TORCH_CHECK(error == 0, op, ": the CUDA kernel was not launched: ", error_name(error));
}

}  // namespace pyrl::cuda
