// From the logits of one row to its token. The semantics, and the order in which the parameters
// act, are written at trimtab.executors.base.SamplingBatch; this file mirrors that class.
//
// A row's result is a pure function of (logits, that row's parameters, seed, position): not of the
// other rows, of the thread, or of what the scratch was used for before.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/sampling_kernels.h"

namespace trimtab {

// The arrays of a SamplingBatch with `rows` rows. Nothing is owned. Ragged fields have rows + 1
// starts; a start array may be null when the field is empty for every row.
struct SamplingView {
  int64_t rows = 0;
  const float* temperature = nullptr;
  const int32_t* top_k = nullptr;
  const float* top_p = nullptr;
  const float* min_p = nullptr;
  const float* repetition_penalty = nullptr;
  const float* presence_penalty = nullptr;
  const float* frequency_penalty = nullptr;
  const uint64_t* seeds = nullptr;
  const int32_t* positions = nullptr;
  const int32_t* num_logprobs = nullptr;
  const int32_t* bias_starts = nullptr;
  const int32_t* bias_ids = nullptr;
  const float* bias_values = nullptr;
  const int32_t* banned_starts = nullptr;
  const int32_t* banned_ids = nullptr;
  const int32_t* prompt_starts = nullptr;
  const int32_t* prompt_ids = nullptr;
  const int32_t* output_starts = nullptr;
  const int32_t* output_ids = nullptr;
  const int32_t* mask_rows = nullptr;  // null: no masks
  const uint32_t* mask = nullptr;      // [num_masks][ceil(vocab / 32)]
  int64_t num_masks = 0;
};

// Lengths of the flat arrays of a SamplingView, for validation only.
struct SamplingLengths {
  int64_t bias = 0;
  int64_t banned = 0;
  int64_t prompt = 0;
  int64_t output = 0;
};

// Throws std::invalid_argument, naming the field, for anything that sample_row may not be given: a
// parameter out of range (NaN included), starts that do not ascend or overrun, an id outside
// [0, vocab), a mask row that does not exist. Called once a batch, at the border.
void validate_sampling(const SamplingView& sampling, const SamplingLengths& lengths, int64_t vocab);

// Working memory of one thread; grows to the largest vocabulary seen and is then reused as it is.
struct SamplerScratch {
  void reserve(int64_t vocab);

  struct Candidate {
    float logit;
    int32_t id;
  };
  std::vector<float> logits;         // adjusted copy, when a row needs one
  std::vector<float> block_max;      // of the model's logits
  std::vector<float> adjusted_max;   // of the adjusted copy
  std::vector<float> selected_max;   // block maxima again, for selection
  std::vector<float> block_weights;  // of the block maxima
  std::vector<int32_t> counts;       // all zero between rows
  std::vector<Candidate> candidates;
};

// Where one row's results go: the row's own slots.
struct SampleOutput {
  int32_t* token = nullptr;         // -1: logits not finite, or nothing left to choose from
  float* logprob = nullptr;         // of the token; 0 where num_logprobs is -1 or token is -1
  int32_t* top_ids = nullptr;       // [top_width]: first num_logprobs by (logit, then smaller id),
  float* top_logprobs = nullptr;    // [top_width]  the rest -1 and 0; only ids with finite logits
  int64_t top_width = 0;            // >= the row's num_logprobs; 0: top_ids may be null
  float* target_logprob = nullptr;  // of `target`; NaN if the logits are not finite; may be null
};

// Candidates are ordered by logit, of equal ones the smaller id first: top-k keeps the first k,
// top-p the shortest prefix whose mass, relative to what top-k left, is at least p; greedy takes
// the first.
//
// Chooses the token of row `row`. `logits` [vocab] are the model's own and are not changed.
// `target` (or -1) is a token to score, independent of what is chosen. NaN or +inf anywhere in
// the logits gives token -1; -inf is an ordinary impossible token. No allocation once the scratch
// has seen this vocabulary.
void sample_row(const SamplingKernels& kernels, const float* logits, int64_t vocab,
                const SamplingView& sampling, int64_t row, int32_t target, SamplerScratch& scratch,
                const SampleOutput& out);

// The noise of one token: a standard Gumbel variate, a pure function of its arguments.
// v = (52 random bits + 1/2) / 2^52, never 0 or 1; the result is -log(-log1p(-v)). Which bits is
// written in sampler_race.cpp.
double gumbel_noise(uint64_t seed, int32_t position, int32_t token_id);

}  // namespace trimtab
