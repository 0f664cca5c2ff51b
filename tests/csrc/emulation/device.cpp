// The threads of device.cuh, apart from it, since every kernel source includes that one.
#include "device.cuh"

#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>

namespace pyrl::device::emulation {

void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s\n", what);
  std::_Exit(3);
}

namespace {

constexpr int kBlocksAtATime = 2;
constexpr unsigned kDeadline = 60;  // seconds for a launch, which takes a fraction of one

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

}  // namespace

struct Block {
  explicit Block(int threads) : barrier(threads), end(threads), warps(threads / kWarp) {}
  Barrier barrier;
  Barrier end;  // of the kernel; apart, so that a thread that left does not count as one at a barrier
  std::vector<Warp> warps;
};

namespace {

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

}  // namespace

void wait_for_block() { self->block->barrier.wait(); }

const uint64_t* exchange(uint64_t value) {
  Warp& warp = self->block->warps[self->index / kWarp];
  uint64_t* values = warp.exchanged[self->exchanges++ % 2];
  values[self->index % kWarp] = value;
  warp.barrier.wait();
  return values;
}

void run(int64_t blocks, int threads, void (*kernel)(const void*), const void* arguments) {
  if (threads % kWarp != 0) fail("a block whose threads are no multiple of 32");
  const Deadline deadline;
  const int at_a_time = static_cast<int>(blocks < kBlocksAtATime ? blocks : kBlocksAtATime);
  std::vector<std::unique_ptr<Block>> slots;
  for (int slot = 0; slot < at_a_time; ++slot) slots.push_back(std::make_unique<Block>(threads));
  Pool::instance().run(at_a_time * threads, [&](int worker) {
    const int slot = worker / threads;
    Thread thread{worker % threads, slot, 0, blocks, slots[slot].get(), 0};
    self = &thread;
    for (thread.block_index = slot; thread.block_index < blocks; thread.block_index += at_a_time) {
      kernel(arguments);
      thread.block->end.wait();
    }
  });
}

}  // namespace pyrl::device::emulation
