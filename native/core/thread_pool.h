// Persistent threads that run one program at a time.
//
// A program is a list of phases, and a phase a number of chunks that any thread may run in any
// order; a phase begins when every chunk of the one before is done. The whole decoder step is one
// program, so threads are woken once a step. Each thread has a share of a phase's chunks, the same
// share in every step, so that it reads the same weights again; one that has finished its own takes
// those of others. A thread that the system has put aside holds up at most the chunk that it had
// begun: the next phase does not wait for its arrival, only for the chunks. So a busy neighbour
// costs its share of a core and little more.
//
// Waiting threads spin for some tens of microseconds, then yield, then sleep in the kernel: an idle
// pool burns no CPU, and more threads than cores make a program slower, never stuck.
//
// No result may depend on who runs which chunk, nor on how many chunks there are.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace trimtab {

class ThreadPool {
 public:
  static constexpr int64_t kMaxChunks = int64_t{1} << 19;  // of a phase

  // Starts num_threads - 1 threads; the caller of run() is the last one. Throws
  // std::invalid_argument for a count outside [1, 1024], std::system_error if the system gives no
  // more threads.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Calls body(phase, chunk, thread) for every chunk of every phase: chunks[i] of them in phase i,
  // 0 to kMaxChunks, or std::invalid_argument is thrown. Everything written in one phase is visible
  // in the next, and after run() to the caller. One caller at a time. An exception in the body ends
  // the process. Allocates nothing. `began`, if it is given, takes the time() at which each phase
  // began, and in began[num_phases] that of the end.
  template <typename Body>
  void run(const int64_t* chunks, int64_t num_phases, const Body& body, int64_t* began = nullptr) {
    run_program({chunks, num_phases, &body,
                 [](const void* context, int64_t phase, int64_t chunk, int thread) noexcept {
                   (*static_cast<const Body*>(context))(phase, chunk, thread);
                 },
                 began});
  }

  // Changes with every phase that begins or ends; may be asked by any thread at any time.
  int64_t progress() const { return epoch_.load(std::memory_order_relaxed); }

  // Nanoseconds of a clock that never goes back.
  static int64_t time();

  // Calls body(begin, end, thread) for pieces that together are [0, count), each of `grain` items
  // but for the last.
  template <typename Body>
  void for_each(int64_t count, int64_t grain, const Body& body) {
    while ((count + grain - 1) / grain > kMaxChunks) grain *= 2;
    const int64_t chunks = (count + grain - 1) / grain;
    run(&chunks, 1, [&](int64_t, int64_t chunk, int thread) {
      body(chunk * grain, std::min(count, (chunk + 1) * grain), thread);
    });
  }

 private:
  struct Program {
    const int64_t* chunks;
    int64_t num_phases;
    const void* context;
    void (*run)(const void* context, int64_t phase, int64_t chunk, int thread) noexcept;
    int64_t* began;
  };
  // The chunks of one thread's share that nobody has taken yet, in one word, so that whoever takes
  // one knows its phase: phase << 40 | end << 20 | next.
  struct alignas(64) Share {
    std::atomic<uint64_t> word{0};
  };

  void stop();
  void run_program(const Program& program);
  void begin_phase(int64_t phase);
  bool run_chunk(Share& share, int thread);
  void run_chunks(int thread);
  void worker(int thread);
  void wait_while(int epoch);

  const int num_threads_;
  Program program_{};
  std::unique_ptr<Share[]> shares_;
  // Each on its own cache line: they are written by different threads at different times.
  alignas(64) std::atomic<int64_t> left_{0};  // chunks of the phase that are not done
  alignas(64) std::atomic<int> epoch_{0};     // changes with every phase, and to end the workers
  std::atomic<bool> finished_{true};          // no program is running
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

}  // namespace trimtab
