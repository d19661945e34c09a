// The native decoder: one step of a ragged batch in one call, in one parallel region.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/attention.h"
#include "core/kv_cache.h"
#include "core/model.h"
#include "core/sampler.h"
#include "core/step.h"
#include "core/thread_pool.h"

namespace trimtab {

// The kernels of one ISA path.
struct Kernels {
  const GemmKernels* gemm;
  const LayerKernels* layer;
};

class Decoder {
 public:
  // `model` must be complete. Throws std::invalid_argument or std::runtime_error (memory).
  Decoder(Kernels kernels, std::shared_ptr<ThreadPool> pool, Model model, int64_t num_blocks);

  const Model& model() const { return model_; }
  KVCache& cache() { return cache_; }

  // Writes K and V of every row, attends, and fills `out`. Throws std::invalid_argument before
  // anything was written if the batch is not valid. One caller at a time.
  void step(const StepInput& step, const StepOutput& out);

 private:
  struct Buffers;

  // What the threads do between two barriers. `norm` [hidden]: normalize x into `hidden_input_`.
  void embed_rows(Team& team, const StepInput& step);
  void norm_rows(Team& team, const std::vector<float>& norm, const Matrix& reader);
  void add_post_norm(Team& team, const std::vector<float>& norm);
  void project(Team& team, const Matrix& matrix, int64_t rows, float* out, int64_t stride,
               Epilogue epilogue);
  void prepare_rows(Team& team, const Matrix& reader, const float* x, int64_t stride);
  void rotate_and_write(Team& team, const StepInput& step, int64_t layer);
  void run_layer(Team& team, const StepInput& step, int64_t layer);
  void run_logits(Team& team, const StepInput& step, const StepOutput& out);
  void sample(Team& team, const StepInput& step, const StepOutput& out, int64_t first,
              int64_t last);
  void reserve(const StepInput& step);
  Activations activations(const Matrix& reader, int64_t rows) const;

  Kernels kernels_;
  std::shared_ptr<ThreadPool> pool_;
  Model model_;
  KVCache cache_;
  StepValidator validator_;
  AttentionPlan attention_;
  std::vector<SamplerScratch> sampler_scratch_;  // one a thread

  // Sizes in elements, all of 64-byte multiples; rows of this step.
  int64_t rows_ = 0;
  int64_t logits_chunk_ = 0;
  int64_t hidden_stride_, qkv_stride_, attention_stride_, mlp_stride_, vocab_stride_;

  // Views into scratch, valid during a step.
  float* x_ = nullptr;          // [rows][hidden_stride]    residual stream
  float* hidden_ = nullptr;     // [rows][hidden_stride]    a norm's or a projection's output
  float* qkv_ = nullptr;        // [rows][qkv_stride]
  float* attended_ = nullptr;   // [rows][attention_stride]
  float* mlp_ = nullptr;        // [rows][mlp_stride]
  float* cosines_ = nullptr;    // [ropes][rows][head_dim / 2]
  float* sines_ = nullptr;      // same
  float* logits_ = nullptr;     // [logits_chunk][vocab_stride]
  uint8_t* activation_data_ = nullptr;
  float* activation_scales_ = nullptr;
  int32_t* activation_sums_ = nullptr;
  Scratch scratch_[11];
};

}  // namespace trimtab
