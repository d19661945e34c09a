// The native decoder: one step of a ragged batch in one call, as one program of the thread pool.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/attention.h"
#include "core/kv_cache.h"
#include "core/model.h"
#include "core/sampler.h"
#include "core/step.h"
#include "core/thread_pool.h"
#include "kernels/kernels.h"

namespace trimtab {

class Decoder {
 public:
  // `model` must be complete. Throws std::invalid_argument for what cannot work and
  // std::runtime_error if the system refuses the memory.
  // `embeddings`, which must outlive it, is where a draft head without embeddings looks them up.
  Decoder(const KernelTable& kernels, std::shared_ptr<ThreadPool> pool, Model model,
          int64_t num_blocks, const Decoder* embeddings = nullptr);

  const Model& model() const { return model_; }
  KVCache& cache() { return cache_; }

  // Writes K and V of every row, attends, and fills `out`. Throws std::invalid_argument, before
  // anything is written, if the batch is not valid. One caller at a time.
  void step(const StepInput& step, const StepOutput& out);

  // The layers whose input (the residual stream) later steps give when asked for features; the
  // number of layers stands for what the final norm gets. Throws std::invalid_argument for others.
  void set_feature_layers(std::vector<int64_t> layers);
  int64_t num_features() const {  // of a row
    return static_cast<int64_t>(feature_layers_.size()) * model_.shape.hidden_size;
  }

  // Changes while a step gets on; may be asked by any thread at any time.
  int64_t progress() const { return pool_->progress(); }

  // Whether later steps take their times; it costs them about ten microseconds.
  void set_timed(bool timed) { timed_ = timed; }
  // Of the latest step, if it was timed: seconds of wall time by kind of work, which together are
  // the whole step. Threads that prepare inputs inside other phases count with their mean.
  std::map<std::string, double> times() const;

 private:
  // out [rows][stride] = matrix x input, of which row i is row input_rows[i] (or i), normed first
  // if there is a norm.
  struct Projection {
    const Matrix* matrix;
    const float* input;
    int64_t input_stride;
    const int32_t* input_rows;
    const std::vector<float>* norm;
    int64_t rows;
    float* out;
    int64_t stride;
    Epilogue epilogue;
  };
  // A phase of the step's program.
  struct Phase {
    void (Decoder::*run)(const Phase& phase, int64_t chunk, int thread);
    uint64_t stamp;  // of this phase of this step, and no other
    int64_t layer;
    int64_t first;  // of the logit rows that it works on, or of the features that it gives
    const std::vector<float>* norm;
    Projection projection;
  };
  // Rows of a sequence whose positions lie in one span of kRunTokens.
  struct RowRun {
    int64_t seq, first, last;
  };
  // One thread's working memory.
  struct alignas(64) Local {
    float* row;               // [hidden_stride]
    float* ordered;           // a row in the order of a matrix's columns
    Activations activations;  // of kOwnRows rows
    uint64_t stamp = 0;       // of the phase whose input they are
    int64_t preparing = 0;    // nanoseconds of a timed step, of inputs inside projections
    int64_t rotating = 0;     // same, inside attention
  };

  template <typename Work>
  void add_time(int64_t& sum, const Work& work) {
    const int64_t began = timed_ ? ThreadPool::time() : 0;
    work();
    if (timed_) sum += ThreadPool::time() - began;
  }

  void reserve();
  void begin_times();
  void build_program();
  void build_layer(int64_t layer);
  void build_qkv(const LayerWeights& weights);
  void build_gate_up(const LayerWeights& weights);
  void build_attention(int64_t layer);
  void build_logits();
  void build_features(int64_t layer);
  void build_draft_input();
  void add_phase(const Phase& phase, int64_t chunks);
  void add_projection(const Projection& projection);
  void add_residual_projection(const Matrix& matrix, const float* input, int64_t stride,
                               const std::vector<float>& post_norm);

  // What the chunks of each phase do.
  void embed(const Phase& phase, int64_t chunk, int thread);
  void prepare(const Phase& phase, int64_t chunk, int thread);
  void multiply(const Phase& phase, int64_t chunk, int thread);
  void rotate(const Phase& phase, int64_t chunk, int thread);
  void attend(const Phase& phase, int64_t chunk, int thread);
  void attend_sequence(const Phase& phase, int64_t chunk, int thread);
  void merge(const Phase& phase, int64_t chunk, int thread);
  void gate(const Phase& phase, int64_t chunk, int thread);
  void add_normed(const Phase& phase, int64_t chunk, int thread);
  void sample(const Phase& phase, int64_t chunk, int thread);
  void give_hidden(const Phase& phase, int64_t chunk, int thread);
  void give_features(const Phase& phase, int64_t chunk, int thread);
  void embed_draft(const Phase& phase, int64_t chunk, int thread);
  void join_inputs(const Phase& phase, int64_t chunk, int thread);

  int64_t row_chunks(int64_t rows) const { return (rows + row_grain_ - 1) / row_grain_; }
  int64_t panels_of_chunk(const Matrix& matrix, int64_t rows) const;
  void embed_token(int32_t token, float scale, float* out) const;
  void find_angles(int64_t row);
  void join_input(int64_t row);
  const float* of_target_ids(const float* draft_logits, int thread);
  void prepare_rows(const Projection& projection, int64_t begin, int64_t end, const Local& local,
                    const Activations& out) const;
  void rotate_run(const RowRun& run, int64_t layer, int64_t head);
  Activations activations(const Activations& memory, const Matrix& reader) const;
  AttentionPlan::Arrays attention_arrays() const {
    return {*step_, cache_, qkv_.data, qkv_stride_, attended_.data, query_stride_};
  }

  const GemmKernels& gemm_;
  const LayerKernels& layers_;
  const SamplingKernels& sampling_;
  std::shared_ptr<ThreadPool> pool_;
  Model model_;
  KVCache cache_;
  const Decoder* embeddings_;
  StepValidator validator_;
  AttentionPlan attention_;
  std::vector<SamplerScratch> sampler_scratch_;  // one a thread
  std::vector<Local> locals_;                    // one a thread
  Region local_memory_;

  // Row strides in elements, multiples of 16.
  const int64_t hidden_stride_, qkv_stride_, query_stride_, mlp_stride_, vocab_stride_;
  int64_t activation_row_bytes_ = 0;   // of the matrix that needs most
  int64_t activation_row_scales_ = 0;  // same
  int64_t activation_row_starts_ = 0;  // same
  bool separate_up_ = false;           // some layer has gate and up apart
  std::vector<int64_t> feature_layers_;

  // Of the current step; all memory is reused from step to step.
  const StepInput* step_ = nullptr;
  const StepOutput* out_ = nullptr;
  std::vector<Phase> phases_;
  std::vector<int64_t> chunks_;  // of each phase
  std::vector<RowRun> runs_;
  bool timed_ = false;
  int64_t began_ = 0;                 // when the step did
  std::vector<int64_t> phase_began_;  // and its phases, and the end; empty unless timed
  uint64_t stamp_ = 0;
  int64_t rows_ = 0;
  int64_t row_grain_ = 1;     // rows of a chunk of row work
  int64_t logits_chunk_ = 0;  // logit rows that are worked on at once
  struct Buffer {
    Scratch scratch;
    float* data = nullptr;

    void reserve(int64_t count) { data = scratch.get<float>(count); }
  };
  Buffer residual_;  // [rows][hidden_stride]
  Buffer hidden_;    // [rows][hidden_stride]   what a norm follows; empty without post-norms
  Buffer qkv_;       // [rows][qkv_stride]
  Buffer attended_;  // [rows][query_stride]
  Buffer mlp_;       // [rows][mlp_stride]
  Buffer up_;        // same, where a layer has gate and up apart
  Buffer cosines_;   // [ropes][rows][head_dim / 2]
  Buffer sines_;     // same
  Buffer logits_;    // [logits_chunk][vocab_stride]
  Buffer joined_;    // [rows][2 * hidden] of a draft head: what q, k and v read
  Buffer spread_;    // [threads][vocab_stride] of a draft head: logits by the target's ids
  Scratch activation_data_, activation_scales_, activation_sums_, activation_starts_;
  Activations activations_{};  // of all rows; row_bytes is set for each matrix
};

}  // namespace trimtab
