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
#include "kernels/kernels.h"

namespace trimtab {

class Decoder {
 public:
  // `model` must be complete. Throws std::invalid_argument for what cannot work and
  // std::runtime_error if the system refuses the memory.
  Decoder(const KernelTable& kernels, std::shared_ptr<ThreadPool> pool, Model model,
          int64_t num_blocks);

  const Model& model() const { return model_; }
  KVCache& cache() { return cache_; }

  // Writes K and V of every row, attends, and fills `out`. Throws std::invalid_argument, before
  // anything is written, if the batch is not valid. One caller at a time.
  void step(const StepInput& step, const StepOutput& out);

 private:
  // What each thread does between two barriers; none of these contains one but for run_*.
  void embed_rows(Team& team, const StepInput& step);
  void norm_rows(Team& team, const std::vector<float>& norm, const Matrix& reader);
  void add_normed(Team& team, const std::vector<float>& norm);
  void prepare_rows(Team& team, const float* x, int64_t stride, const Matrix& reader);
  void project(Team& team, const Matrix& matrix, int64_t rows, float* out, int64_t stride,
               Epilogue epilogue);
  void project_residual(Team& team, const Matrix& matrix);
  void rotate_and_write(Team& team, const StepInput& step, int64_t layer);
  void normalize_logit_rows(Team& team, const StepInput& step, int64_t first, int64_t last);
  void sample_rows(Team& team, const StepInput& step, const StepOutput& out, int64_t first,
                   int64_t last);
  void run_layer(Team& team, const StepInput& step, int64_t layer);
  void run_logits(Team& team, const StepInput& step, const StepOutput& out);

  void reserve(const StepInput& step);
  void prepare(const float* x, int64_t stride, int64_t rows, int64_t first_row,
               const Matrix& reader) const;
  Activations activations(const Matrix& reader) const;

  const GemmKernels& gemm_;
  const LayerKernels& layers_;
  const SamplingKernels& sampling_;
  std::shared_ptr<ThreadPool> pool_;
  Model model_;
  KVCache cache_;
  StepValidator validator_;
  AttentionPlan attention_;
  std::vector<SamplerScratch> sampler_scratch_;  // one a thread

  // Row strides in elements, multiples of 16.
  const int64_t hidden_stride_, qkv_stride_, query_stride_, mlp_stride_, vocab_stride_;
  int64_t activation_row_bytes_ = 0;   // of the matrix that needs most
  int64_t activation_row_scales_ = 0;  // same
  int64_t activation_row_starts_ = 0;  // same

  // Of the current step; all memory is reused from step to step.
  int64_t rows_ = 0;
  int64_t logits_chunk_ = 0;  // logit rows that are worked on at once
  struct Buffer {
    Scratch scratch;
    float* data = nullptr;

    void reserve(int64_t count) { data = scratch.get<float>(count); }
  };
  Buffer residual_;  // [rows][hidden_stride]
  Buffer hidden_;    // [rows][hidden_stride]   what a norm or a projection puts out
  Buffer qkv_;       // [rows][qkv_stride]
  Buffer attended_;  // [rows][query_stride]
  Buffer mlp_;       // [rows][mlp_stride]
  Buffer cosines_;   // [ropes][rows][head_dim / 2]
  Buffer sines_;     // same
  Buffer logits_;    // [logits_chunk][vocab_stride]
  Scratch activation_data_, activation_scales_, activation_starts_;
  Activations activations_{};  // row_bytes is set for each matrix
};

}  // namespace trimtab
