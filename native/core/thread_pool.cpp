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
constexpr auto kYield = std::chrono::milliseconds(1);  // more than passes between two steps
constexpr int kFieldBits = 20;
constexpr uint64_t kFieldMask = (uint64_t{1} << kFieldBits) - 1;

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
  shares_ = std::make_unique<Share[]>(num_threads);
  workers_.reserve(num_threads - 1);
  try {
    for (int thread = 1; thread < num_threads; ++thread)
      workers_.emplace_back([this, thread] { worker(thread); });
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

int64_t ThreadPool::time() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void ThreadPool::stop() {
  stopping_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (auto& worker : workers_) worker.join();
}

// Spin first (a wake-up costs more than most waits), then let others have the core, then sleep.
void ThreadPool::wait_while(int epoch) {
  const auto start = std::chrono::steady_clock::now();
  while (true) {
    for (int i = 0; i < 32; ++i) {
      if (epoch_.load(std::memory_order_acquire) != epoch) return;
      relax();
    }
    const auto waited = std::chrono::steady_clock::now() - start;
    if (waited > kYield) break;
    if (waited > kSpin) std::this_thread::yield();
  }
  epoch_.wait(epoch, std::memory_order_acquire);
}

// Called by one thread while no chunk is left to take: publishes the first phase from `phase` on
// that has chunks, or the end.
void ThreadPool::begin_phase(int64_t phase) {
  const int64_t skipped = phase;
  while (phase < program_.num_phases && program_.chunks[phase] == 0) ++phase;
  if (program_.began != nullptr)
    std::fill(program_.began + skipped, program_.began + phase + 1, time());
  if (phase < program_.num_phases) {
    const int64_t chunks = program_.chunks[phase];
    left_.store(chunks, std::memory_order_relaxed);
    for (int64_t thread = 0; thread < num_threads_; ++thread) {
      const auto first = static_cast<uint64_t>(chunks * thread / num_threads_);
      const auto end = static_cast<uint64_t>(chunks * (thread + 1) / num_threads_);
      shares_[thread].word.store(
          static_cast<uint64_t>(phase) << 2 * kFieldBits | end << kFieldBits | first,
          std::memory_order_release);
    }
  } else {
    finished_.store(true, std::memory_order_release);
  }
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
}

// Takes and runs one chunk of a share; false if there is none.
bool ThreadPool::run_chunk(Share& share, int thread) {
  const auto has_chunk = [](uint64_t word) {
    return (word & kFieldMask) < (word >> kFieldBits & kFieldMask);
  };
  // Look first: `next` must not run over into `end`.
  if (!has_chunk(share.word.load(std::memory_order_relaxed))) return false;
  const uint64_t word = share.word.fetch_add(1, std::memory_order_acquire);
  if (!has_chunk(word)) return false;
  const auto phase = static_cast<int64_t>(word >> 2 * kFieldBits);
  program_.run(program_.context, phase, static_cast<int64_t>(word & kFieldMask), thread);
  if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) begin_phase(phase + 1);
  return true;
}

// Runs chunks, its own first, until it finds none.
void ThreadPool::run_chunks(int thread) {
  while (true) {
    while (run_chunk(shares_[thread], thread)) {
    }
    bool found = false;
    for (int i = 1; i < num_threads_ && !found; ++i)
      found = run_chunk(shares_[(thread + i) % num_threads_], thread);
    if (!found) return;
  }
}

void ThreadPool::worker(int thread) {
  while (true) {
    // Read before looking for chunks: a phase that begins after the look ends the wait.
    const int epoch = epoch_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) return;
    run_chunks(thread);
    wait_while(epoch);
  }
}

void ThreadPool::run_program(const Program& program) {
  for (int64_t phase = 0; phase < program.num_phases; ++phase)
    if (program.chunks[phase] < 0 || program.chunks[phase] > kMaxChunks)
      throw std::invalid_argument("a phase cannot have " + std::to_string(program.chunks[phase]) +
                                  " chunks");
  program_ = program;
  finished_.store(false, std::memory_order_relaxed);
  begin_phase(0);
  while (true) {
    const int epoch = epoch_.load(std::memory_order_acquire);
    run_chunks(0);
    if (finished_.load(std::memory_order_acquire)) return;
    wait_while(epoch);
  }
}

}  // namespace trimtab
