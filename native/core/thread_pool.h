// Persistent threads for one parallel region at a time.
//
// A region is one function that every thread of the team runs from start to end, with barriers
// inside: the whole decoder step is one region, so threads are woken once a step. Waiting threads
// spin for some tens of microseconds, then yield, then sleep in the kernel: an idle pool burns no
// CPU, and more threads than cores make a region slower, never stuck.
//
// No result may depend on who does which part: loops hand out ranges, and what a range computes
// must not depend on where it begins or ends.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace trimtab {

class ThreadPool;

// What a thread sees of its team inside a region.
class Team {
 public:
  Team(ThreadPool& pool, int thread) : pool_(pool), thread_(thread) {}

  int thread() const { return thread_; }
  int num_threads() const;

  // Returns when every thread of the team has called it; everything written before is then visible
  // to all.
  void barrier();

  // Calls body(begin, end) for this thread's contiguous share of [0, count), in whole granules:
  // the same share in every call with the same count, so that a thread reads the same weights
  // again.
  template <typename Body>
  void for_static(int64_t count, int64_t granule, Body&& body) const {
    const int64_t granules = (count + granule - 1) / granule;
    const int64_t begin = granules * thread_ / num_threads() * granule;
    const int64_t end = std::min(count, granules * (thread_ + 1) / num_threads() * granule);
    if (begin < end) body(begin, end);
  }

  // Calls body(i) for items of [0, count), each taken by the first free thread. At most one such
  // loop between two barriers.
  template <typename Body>
  void for_dynamic(int64_t count, Body&& body) {
    for (int64_t item = take(); item < count; item = take()) body(item);
  }

 private:
  int64_t take();

  ThreadPool& pool_;
  int thread_;
};

class ThreadPool {
 public:
  // Starts num_threads - 1 threads; the caller of run() is the last one. Throws
  // std::invalid_argument for a count outside [1, 1024], std::system_error if the system gives no
  // more threads.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Runs the region on every thread and returns when all have finished it. Only one caller at a
  // time. The region must not throw: an exception in it ends the process.
  template <typename Region>
  void run(const Region& region) {
    run_body([](const void* body, Team& team) { (*static_cast<const Region*>(body))(team); },
             &region);
  }

 private:
  friend class Team;

  using Body = void (*)(const void* region, Team& team);

  void run_body(Body body, const void* region);
  void worker(int thread);
  void wait_while(std::atomic<int>& word, int value);
  void barrier();

  // Each on its own cache line: they are written by different threads at different times.
  alignas(64) std::atomic<int> region_{0};  // number of the current region; -1 ends the workers
  alignas(64) std::atomic<int> phase_{0};   // number of barriers passed
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int64_t> next_item_{0};
  Body body_ = nullptr;
  const void* region_body_ = nullptr;
  const int num_threads_;
  std::vector<std::thread> workers_;
};

inline int Team::num_threads() const { return pool_.num_threads(); }
inline void Team::barrier() { pool_.barrier(); }
inline int64_t Team::take() { return pool_.next_item_.fetch_add(1, std::memory_order_relaxed); }

}  // namespace trimtab
