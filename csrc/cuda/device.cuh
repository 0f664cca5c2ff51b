// The primitives of the kernels, one line each: no .cu names CUDA otherwise. tests/csrc/emulation/device.cuh implements
// the same names for the host, so that the same .cu also runs on a processor.
#pragma once

#include <cstdint>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// A kernel; its _BOUNDS form tells the compiler the threads of a block and how many blocks a multiprocessor shall hold.
#define PYRL_KERNEL __global__ void
#define PYRL_KERNEL_BOUNDS(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define PYRL_DEVICE __device__ __forceinline__
#define PYRL_SHARED(type, name, count) __shared__ type name[count]

namespace pyrl::device {

inline constexpr int kWarp = 32;

PYRL_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
PYRL_DEVICE int64_t block_index() { return blockIdx.x; }
PYRL_DEVICE int64_t grid_size() { return gridDim.x; }
PYRL_DEVICE int lane() { return static_cast<int>(threadIdx.x % kWarp); }
PYRL_DEVICE int warp() { return static_cast<int>(threadIdx.x / kWarp); }

PYRL_DEVICE void block_barrier() { __syncthreads(); }

// By all lanes of a warp.
template <typename T>
PYRL_DEVICE T shuffle_down(T value, int distance) { return __shfl_down_sync(~0u, value, distance); }
template <typename T>
PYRL_DEVICE T shuffle_up(T value, int distance) { return __shfl_up_sync(~0u, value, distance); }
template <typename T>
PYRL_DEVICE T shuffle_xor(T value, int lanes) { return __shfl_xor_sync(~0u, value, lanes); }
template <typename T>
PYRL_DEVICE T shuffle(T value, int source) { return __shfl_sync(~0u, value, source); }
PYRL_DEVICE uint32_t ballot(bool vote) { return __ballot_sync(~0u, vote); }

// Integers: their sum and their minimum do not depend on the order.
PYRL_DEVICE void atomic_add(int32_t* to, int32_t value) { atomicAdd(to, value); }
PYRL_DEVICE void atomic_add(int64_t* to, int64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}
PYRL_DEVICE void atomic_min(uint64_t* to, uint64_t value) {
  atomicMin(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}

// 16 bytes at a multiple of 16, marked as used once, so that they do not drive other data out of the cache.
struct alignas(16) Bits16 {
  uint32_t word[4];
};
PYRL_DEVICE Bits16 load16(const void* from) {
  const uint4 v = __ldcs(static_cast<const uint4*>(from));
  return {{v.x, v.y, v.z, v.w}};
}
PYRL_DEVICE void store16(void* to, Bits16 v) {
  __stcs(static_cast<uint4*>(to), make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]));
}

// fp32 arithmetic. exp2: within 2 ulp, 0 below 2^-126. max_nan: NaN where either is.
PYRL_DEVICE float exp2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
PYRL_DEVICE float max_nan(float a, float b) { float y; asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b)); return y; }
PYRL_DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }
PYRL_DEVICE uint32_t float_bits(float x) { return __float_as_uint(x); }

// Two 16-bit floats in a word, the first in the low half: fp16 to fp32, rounding to nearest even, and the larger ones.
PYRL_DEVICE __half2 as_half2(uint32_t word) { return reinterpret_cast<const __half2&>(word); }
PYRL_DEVICE __nv_bfloat162 as_bf162(uint32_t word) { return reinterpret_cast<const __nv_bfloat162&>(word); }
template <typename Pair>
PYRL_DEVICE uint32_t as_word(Pair pair) { return reinterpret_cast<const uint32_t&>(pair); }
PYRL_DEVICE float low_half(uint32_t word) { return __low2float(as_half2(word)); }
PYRL_DEVICE float high_half(uint32_t word) { return __high2float(as_half2(word)); }
PYRL_DEVICE uint32_t pack_half(float low, float high) { return as_word(__floats2half2_rn(low, high)); }
PYRL_DEVICE uint32_t pack_bf16(float low, float high) { return as_word(__floats2bfloat162_rn(low, high)); }
PYRL_DEVICE uint32_t max_half(uint32_t a, uint32_t b) { return as_word(__hmax2(as_half2(a), as_half2(b))); }
PYRL_DEVICE uint32_t max_bf16(uint32_t a, uint32_t b) { return as_word(__hmax2(as_bf162(a), as_bf162(b))); }

// The error of the launch, 0 for none. No blocks: nothing to do.
template <typename... Parameters>
int launch(
    void (*kernel)(Parameters...), int64_t blocks, int threads, void* stream,
    std::type_identity_t<Parameters>... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  kernel<<<static_cast<unsigned>(blocks), threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace pyrl::device
