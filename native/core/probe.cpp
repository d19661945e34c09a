#include "core/probe.h"

#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <new>
#include <thread>

namespace trimtab {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Runs work(thread) on all threads, started together; seconds from the start to the last one's end.
double timed(int threads, const std::function<void(int)>& work) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) {
    others.emplace_back([&, i] {
      ready.fetch_add(1);
      while (!go.load(std::memory_order_acquire)) std::this_thread::yield();
      work(i);
    });
  }
  while (ready.load() < threads - 1) std::this_thread::yield();
  Clock::time_point start = Clock::now();
  go.store(true, std::memory_order_release);
  work(0);
  for (std::thread& thread : others) thread.join();
  return seconds_since(start);
}

class Mapping {
 public:
  explicit Mapping(int64_t bytes) : bytes_(bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<uint8_t*>(memory);
    madvise(data_, bytes, MADV_HUGEPAGE);
  }
  ~Mapping() { munmap(data_, bytes_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  uint8_t* data() const { return data_; }

 private:
  uint8_t* data_;
  int64_t bytes_;
};

}  // namespace

std::vector<double> probe_bandwidth(Isa isa, int threads, int64_t bytes, int repeats) {
  const ProbeKernels& kernels = kernel_table(isa).probe;
  int64_t share = bytes / threads / 256 * 256;
  Mapping buffer(share * threads);
  std::vector<int32_t> sinks(threads);
  // The first pass writes, so that the pages exist, each near the thread that will read it.
  timed(threads, [&](int i) {
    uint8_t* part = buffer.data() + i * share;
    for (int64_t at = 0; at < share; ++at) part[at] = static_cast<uint8_t>(at * 7 + i);
  });
  std::vector<double> samples;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    double seconds =
        timed(threads, [&](int i) { sinks[i] = kernels.read(buffer.data() + i * share, share); });
    samples.push_back(static_cast<double>(share * threads) / seconds);
  }
  return samples;
}

std::vector<double> probe_handoff(int threads, int repeats) {
  constexpr int64_t kRounds = 500;
  constexpr int kSpins = 5000;  // then yield: there may be fewer cores than threads
  struct alignas(64) Turn {
    std::atomic<int64_t> value{0};
  } turn;
  const int64_t hops = kRounds * threads;
  std::vector<double> samples;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    turn.value.store(0);
    double seconds = timed(threads, [&](int i) {
      for (int64_t own = i; own < hops; own += threads) {
        for (int spins = 0; turn.value.load(std::memory_order_acquire) != own; ++spins) {
          if (spins > kSpins) std::this_thread::yield();
        }
        turn.value.store(own + 1, std::memory_order_release);
      }
    });
    samples.push_back(seconds / static_cast<double>(hops));
  }
  return samples;
}

std::vector<double> probe_arithmetic(Isa isa, int threads, ProbeArithmetic kind, int repeats) {
  const ProbeKernels& kernels = kernel_table(isa).probe;
  // Floats of moderate size; as bytes, values of either sign.
  std::vector<float> operands((4096 + 64) / 4);
  for (size_t i = 0; i < operands.size(); ++i) operands[i] = 0.5f + 1e-3f * static_cast<float>(i);
  const uint8_t* data = reinterpret_cast<const uint8_t*>(operands.data());
  std::vector<float> sinks(threads);

  // About 20 ms of work, found by doubling.
  int64_t rounds = 16;
  while (timed(1, [&](int) { sinks[0] = kernels.compute(kind, data, rounds); }) < 0.02) rounds *= 2;
  std::vector<double> samples;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    double seconds = timed(threads, [&](int i) { sinks[i] = kernels.compute(kind, data, rounds); });
    samples.push_back(static_cast<double>(threads * kernels.macs(kind, rounds)) / seconds);
  }
  return samples;
}

}  // namespace trimtab
