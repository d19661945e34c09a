// One step's arrays, as they cross the border: trimtab.executors.base.StepBatch and StepResult.
#pragma once

#include <cstdint>
#include <vector>

#include "core/sampler.h"

namespace trimtab {

// Nothing is owned; every array is C-contiguous.
struct StepInput {
  const int32_t* token_ids = nullptr;  // [num_rows]
  const int32_t* positions = nullptr;  // [num_rows]
  int64_t num_rows = 0;
  const int32_t* seq_starts = nullptr;    // [num_seqs + 1]
  const int32_t* block_starts = nullptr;  // [num_seqs + 1]
  int64_t num_seqs = 0;
  const int32_t* block_ids = nullptr;  // [num_block_ids]
  int64_t num_block_ids = 0;
  const int32_t* logit_rows = nullptr;  // [num_logits]
  int64_t num_logits = 0;
  SamplingView sampling;                 // of the logit rows, already validated
  const int32_t* targets = nullptr;      // [num_logits] or null
  const int32_t* hidden_rows = nullptr;  // [num_hidden]
  int64_t num_hidden = 0;
  bool features = false;  // of all rows
  // Of a draft head: [num_rows][input_size], features or, where input_size is hidden_size, hidden
  // states.
  const float* inputs = nullptr;
  int64_t input_size = 0;
};

struct StepOutput {
  int32_t* tokens = nullptr;         // [num_logits]
  float* logprobs = nullptr;         // [num_logits]
  int32_t* top_ids = nullptr;        // [num_logits][top_width]
  float* top_logprobs = nullptr;     // [num_logits][top_width]
  int64_t top_width = 0;             // at least the largest num_logprobs
  float* target_logprobs = nullptr;  // [num_logits], with targets
  float* logits = nullptr;           // [num_logits][vocab] or null
  float* hidden = nullptr;           // [num_hidden][hidden_size], what the output head reads
  float* features = nullptr;         // [num_rows][feature layers][hidden_size], if asked for
};

// Checks everything but the sampling parameters, so that no batch can make it read or write outside
// its memory or write one block from two places. Throws std::invalid_argument: one line naming the
// array. Keeps a little memory between calls.
class StepValidator {
 public:
  StepValidator(int64_t vocab_size, int64_t num_blocks)
      : vocab_size_(vocab_size), num_blocks_(num_blocks), writer_(num_blocks, -1) {}

  void check(const StepInput& step);

 private:
  void check_sequence(const StepInput& step, int64_t seq);
  void check_targets(const StepInput& step);

  int64_t vocab_size_;
  int64_t num_blocks_;
  std::vector<int64_t> writer_;  // of each block, in this step: the block's index in block_ids
};

}  // namespace trimtab
