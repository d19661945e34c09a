#include "core/thread_pool.h"

#include <chrono>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace trimtab {
namespace {

constexpr int kMaxThreads = 1024;
constexpr auto kSpin = std::chrono::microseconds(40);
constexpr auto kYield = std::chrono::microseconds(200);

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads) {
  if (num_threads < 1 || num_threads > kMaxThreads)
    throw std::invalid_argument("threads=" + std::to_string(num_threads) + ": must be 1 to " +
                                std::to_string(kMaxThreads));
  workers_.reserve(num_threads - 1);
  try {
    for (int thread = 1; thread < num_threads; ++thread)
      workers_.emplace_back([this, thread] { worker(thread); });
  } catch (...) {
    region_.store(-1, std::memory_order_release);
    region_.notify_all();
    for (auto& worker : workers_) worker.join();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  region_.store(-1, std::memory_order_release);
  region_.notify_all();
  for (auto& worker : workers_) worker.join();
}

// Spin first (a wake-up costs more than most waits), then let others have the core, then sleep.
void ThreadPool::wait_while(std::atomic<int>& word, int value) {
  const auto start = std::chrono::steady_clock::now();
  while (true) {
    for (int i = 0; i < 32; ++i) {
      if (word.load(std::memory_order_acquire) != value) return;
      relax();
    }
    const auto waited = std::chrono::steady_clock::now() - start;
    if (waited > kYield) break;
    if (waited > kSpin) std::this_thread::yield();
  }
  while (word.load(std::memory_order_acquire) == value) word.wait(value, std::memory_order_acquire);
}

void ThreadPool::barrier() {
  if (num_threads_ == 1) {
    next_item_.store(0, std::memory_order_relaxed);
    return;
  }
  const int phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads_) {
    // The last one to come: the others wait, so shared state may be reset.
    arrived_.store(0, std::memory_order_relaxed);
    next_item_.store(0, std::memory_order_relaxed);
    phase_.store((phase + 1) & 0x3fffffff, std::memory_order_release);
    phase_.notify_all();
  } else {
    wait_while(phase_, phase);
  }
}

void ThreadPool::worker(int thread) {
  Team team(*this, thread);
  int region = 0;
  while (true) {
    wait_while(region_, region);
    region = region_.load(std::memory_order_acquire);
    if (region < 0) return;
    body_(region_body_, team);
    barrier();
  }
}

void ThreadPool::run_body(Body body, const void* region) {
  body_ = body;
  region_body_ = region;
  next_item_.store(0, std::memory_order_relaxed);
  if (num_threads_ > 1) {
    region_.store((region_.load(std::memory_order_relaxed) + 1) & 0x3fffffff,
                  std::memory_order_release);
    region_.notify_all();
  }
  Team team(*this, 0);
  [&]() noexcept { body(region, team); }();
  barrier();
}

}  // namespace trimtab
