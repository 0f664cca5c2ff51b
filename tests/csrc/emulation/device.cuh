// csrc/cuda/device.cuh for the host: the same names, a block's threads as real threads (device.cpp), so that the same .cu
// runs on a processor, under its sanitizers. Two blocks run at a time.
//
// Stricter than a GPU: a barrier, shuffle or vote that not all threads of the block or warp reach ends the program.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#define PYRL_KERNEL void
#define PYRL_KERNEL_BOUNDS(threads, blocks) void
#define PYRL_DEVICE inline
// One array for each of the blocks that run at a time.
#define PYRL_SHARED(type, name, count)     \
  static type name##_of_block_0[count];    \
  static type name##_of_block_1[count];    \
  type* const name = ::pyrl::device::emulation::self->slot == 0 ? name##_of_block_0 : name##_of_block_1

namespace pyrl::device {

inline constexpr int kWarp = 32;

namespace emulation {

[[noreturn]] void fail(const char* what);

struct Block;
struct Thread {
  int index;
  int slot;
  int64_t block_index;
  int64_t grid_size;
  Block* block;
  int exchanges;
};
inline constinit thread_local Thread* self = nullptr;

void wait_for_block();

// The values of all lanes, until the exchange after the next: by then every lane has read them.
const uint64_t* exchange(uint64_t value);

// Every block's threads call kernel(arguments).
void run(int64_t blocks, int threads, void (*kernel)(const void*), const void* arguments);

// The value of lane `source`, or of this lane where there is no such lane.
template <typename T>
T value_of_lane(T value, int source) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  const uint64_t* values = exchange(word);
  T result;
  std::memcpy(&result, &values[source >= 0 && source < kWarp ? source : self->index % kWarp], sizeof result);
  return result;
}

template <typename To, typename From>
To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float from_half(uint32_t half) {
  const uint32_t exponent = (half >> 10) & 31, mantissa = half & 0x3FF;
  const float sign = (half & 0x8000) ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa ? std::numeric_limits<float>::quiet_NaN() : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(mantissa | 0x400), static_cast<int>(exponent) - 25);
}

// To nearest even: the quantum is 2^-24, or a unit in the last of 11 bits.
inline uint32_t to_half(float x) {
  const uint32_t sign = (bits<uint32_t>(x) >> 16) & 0x8000;
  if (std::isnan(x)) return 0x7FFF;
  const float magnitude = std::fabs(x);
  if (magnitude >= 65520.0f) return sign | 0x7C00;
  const int exponent = magnitude < 0x1p-14f ? -14 : std::ilogb(magnitude);
  const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return sign | (units + (static_cast<uint32_t>(exponent + 14) << 10));  // a unit above 1023 adds to the exponent
}

inline float from_bf16(uint32_t bf16) { return bits<float>(bf16 << 16); }

inline uint32_t to_bf16(float x) {
  if (std::isnan(x)) return 0x7FFF;
  const uint32_t word = bits<uint32_t>(x);
  return (word + 0x7FFF + ((word >> 16) & 1)) >> 16;
}

// Of two numbers, as maxNum: a NaN loses.
template <float (*Convert)(uint32_t)>
uint32_t max_pair(uint32_t a, uint32_t b) {
  uint32_t result = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    const uint32_t x = (a >> shift) & 0xFFFF, y = (b >> shift) & 0xFFFF;
    result |= (std::isnan(Convert(x)) || Convert(y) > Convert(x) ? y : x) << shift;
  }
  return result;
}

}  // namespace emulation

inline int thread_index() { return emulation::self->index; }
inline int64_t block_index() { return emulation::self->block_index; }
inline int64_t grid_size() { return emulation::self->grid_size; }
inline int lane() { return emulation::self->index % kWarp; }
inline int warp() { return emulation::self->index / kWarp; }

inline void block_barrier() { emulation::wait_for_block(); }

template <typename T>
T shuffle_down(T value, int distance) { return emulation::value_of_lane(value, lane() + distance); }
template <typename T>
T shuffle_up(T value, int distance) { return emulation::value_of_lane(value, lane() - distance); }
template <typename T>
T shuffle_xor(T value, int lanes) { return emulation::value_of_lane(value, lane() ^ lanes); }
template <typename T>
T shuffle(T value, int source) { return emulation::value_of_lane(value, source); }
inline uint32_t ballot(bool vote) {
  const uint64_t* votes = emulation::exchange(uint64_t{vote});
  uint32_t result = 0;
  for (int source = 0; source < kWarp; ++source) result |= static_cast<uint32_t>(votes[source]) << source;
  return result;
}

inline void atomic_add(int32_t* to, int32_t value) { std::atomic_ref(*to).fetch_add(value, std::memory_order_relaxed); }
inline void atomic_add(int64_t* to, int64_t value) { std::atomic_ref(*to).fetch_add(value, std::memory_order_relaxed); }
inline void atomic_min(uint64_t* to, uint64_t value) {
  std::atomic_ref target(*to);
  uint64_t seen = target.load(std::memory_order_relaxed);
  while (value < seen && !target.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

struct alignas(16) Bits16 {
  uint32_t word[4];
};
inline Bits16 load16(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) emulation::fail("a 16-byte load at an address that is no multiple of 16");
  Bits16 v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
inline void store16(void* to, Bits16 v) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) emulation::fail("a 16-byte store at an address that is no multiple of 16");
  std::memcpy(to, &v, sizeof v);
}

inline float exp2(float x) { return x < -126.0f ? 0.0f : std::exp2(x); }
inline float max_nan(float a, float b) { return std::isnan(a) || b < a ? a : b; }
inline float bits_float(uint32_t word) { return emulation::bits<float>(word); }
inline uint32_t float_bits(float x) { return emulation::bits<uint32_t>(x); }

inline float low_half(uint32_t word) { return emulation::from_half(word & 0xFFFF); }
inline float high_half(uint32_t word) { return emulation::from_half(word >> 16); }
inline uint32_t pack_half(float low, float high) { return emulation::to_half(low) | emulation::to_half(high) << 16; }
inline uint32_t pack_bf16(float low, float high) { return emulation::to_bf16(low) | emulation::to_bf16(high) << 16; }
inline uint32_t max_half(uint32_t a, uint32_t b) { return emulation::max_pair<emulation::from_half>(a, b); }
inline uint32_t max_bf16(uint32_t a, uint32_t b) { return emulation::max_pair<emulation::from_bf16>(a, b); }

template <typename... Parameters>
int launch(
    void (*kernel)(Parameters...), int64_t blocks, int threads, void* /*stream*/,
    std::type_identity_t<Parameters>... arguments) {
  const auto call = [&] { kernel(arguments...); };
  emulation::run(blocks, threads, [](const void* work) { (*static_cast<const decltype(call)*>(work))(); }, &call);
  return 0;
}

}  // namespace pyrl::device
