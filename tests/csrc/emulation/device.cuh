// csrc/cuda/device.cuh for the host: the same names, a block's threads as real threads, so that the same .cu runs on a
// processor, under its sanitizers. Two blocks run at a time.
//
// Stricter than a GPU: a barrier, shuffle or vote that not all threads of the block or warp reach ends the program.
#pragma once

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include <unistd.h>

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

inline constexpr int kBlocksAtATime = 2;
inline constexpr unsigned kDeadline = 60;  // seconds for a launch, which takes a fraction of one

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s\n", what);
  std::_Exit(3);
}

// In force while it exists, that is for one launch. SIGALRM may arrive in any thread.
struct Deadline {
  Deadline() {
    std::signal(SIGALRM, [](int) { fail("a barrier, shuffle or vote was not reached by all threads of the block or warp"); });
    alarm(kDeadline);
  }
  ~Deadline() { alarm(0); }
};

// Without a lock: all threads of a block wake at once, and would wait for it one after another.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}

  void wait() {
    const int phase = phase_.load(std::memory_order_relaxed);  // it cannot change before this thread has arrived
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < threads_) {
      phase_.wait(phase, std::memory_order_acquire);
      return;
    }
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
  }

 private:
  const int threads_;
  std::atomic<int> arrived_{0}, phase_{0};
};

struct Warp {
  Barrier barrier{kWarp};
  uint64_t exchanged[2][kWarp] = {};
};

struct Block {
  explicit Block(int threads) : barrier(threads), end(threads), warps(threads / kWarp) {}
  Barrier barrier;
  Barrier end;  // of the kernel; apart, so that a thread that left does not count as one at a barrier
  std::vector<Warp> warps;
};

struct Thread {
  int index;
  int slot;
  int64_t block_index;
  int64_t grid_size;
  Block* block;
  int exchanges;
};
inline thread_local Thread* self = nullptr;

// The values of all lanes, until the exchange after the next: by then every lane has read them.
template <typename T>
const uint64_t* exchange(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  Warp& warp = self->block->warps[self->index / kWarp];
  uint64_t* values = warp.exchanged[self->exchanges++ % 2];
  std::memcpy(&values[self->index % kWarp], &value, sizeof value);
  warp.barrier.wait();
  return values;
}

// The value of lane `source`, or of this lane where there is no such lane.
template <typename T>
T value_of_lane(T value, int source) {
  const uint64_t* values = exchange(value);
  T result;
  std::memcpy(&result, &values[source >= 0 && source < kWarp ? source : self->index % kWarp], sizeof result);
  return result;
}

// Threads that are used again by every launch: starting them costs more than what they do.
class Pool {
 public:
  static Pool& instance() {
    static Pool& pool = *new Pool;  // outlives the threads, which nobody ends
    return pool;
  }

  // Calls work(0) .. work(count - 1), all at once.
  void run(int count, const std::function<void(int)>& work) {
    std::unique_lock lock(mutex_);
    while (started_ < count) std::thread([this, index = started_++] { serve(index); }).detach();
    work_ = &work;
    count_ = running_ = count;
    ++generation_;
    wake_.notify_all();
    done_.wait(lock, [&] { return running_ == 0; });
  }

 private:
  void serve(int index) {
    int64_t seen = 0;
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (index >= count_) continue;
      const std::function<void(int)>& work = *work_;
      lock.unlock();
      work(index);
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int)>* work_ = nullptr;
  int started_ = 0, count_ = 0, running_ = 0;
  int64_t generation_ = 0;
};

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

inline void block_barrier() { emulation::self->block->barrier.wait(); }

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
  if (threads % kWarp != 0) emulation::fail("a block whose threads are no multiple of 32");
  const emulation::Deadline deadline;
  const int at_a_time = static_cast<int>(blocks < emulation::kBlocksAtATime ? blocks : emulation::kBlocksAtATime);
  std::vector<std::unique_ptr<emulation::Block>> slots;
  for (int slot = 0; slot < at_a_time; ++slot) slots.push_back(std::make_unique<emulation::Block>(threads));
  emulation::Pool::instance().run(at_a_time * threads, [&](int worker) {
    const int slot = worker / threads;
    emulation::Thread thread{worker % threads, slot, 0, blocks, slots[slot].get(), 0};
    emulation::self = &thread;
    for (thread.block_index = slot; thread.block_index < blocks; thread.block_index += at_a_time) {
      kernel(arguments...);
      thread.block->end.wait();
    }
  });
  return 0;
}

}  // namespace pyrl::device
