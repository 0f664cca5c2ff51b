// A kernel reads all of its arguments on one device, where the memory of another is not what its address says. The Python
// wrappers refuse such arguments first, with a ValueError; this is for who calls the ops of torch.ops.pyrl themselves.
#pragma once

#include <string>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

namespace pyrl {

inline std::string device_name(const torch::stable::Tensor& tensor) {
  if (tensor.is_cpu()) return "the CPU";
  if (tensor.is_cuda()) return "CUDA device " + std::to_string(tensor.get_device_index());
  return "a device that is neither the CPU nor CUDA";
}

inline void check_same_device(
    const char* op, const char* name, const torch::stable::Tensor& tensor, const torch::stable::Tensor& others) {
  STD_TORCH_CHECK(
      tensor.device() == others.device(), op, ": got ", name, " on ", device_name(tensor), ", wanted it on ",
      device_name(others), ", where the other arguments are");
}

}  // namespace pyrl
