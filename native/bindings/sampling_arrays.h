// A trimtab.executors.base.SamplingBatch, held and checked, as the SamplingView that the core
// reads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "bindings/arrays.h"
#include "core/sampler.h"

class SamplingArrays {
 public:
  // Keeps the batch's arrays alive until the next call. Throws std::invalid_argument for a wrong
  // dtype, shape or value.
  const trimtab::SamplingView& read(nanobind::handle batch, int64_t rows, int64_t vocab) {
    trimtab::SamplingView& v = view_;
    trimtab::SamplingLengths lengths;
    v.rows = rows;
    v.temperature = vector(temperature_, batch, rows);
    v.top_k = vector(top_k_, batch, rows);
    v.top_p = vector(top_p_, batch, rows);
    v.min_p = vector(min_p_, batch, rows);
    v.repetition_penalty = vector(repetition_penalty_, batch, rows);
    v.presence_penalty = vector(presence_penalty_, batch, rows);
    v.frequency_penalty = vector(frequency_penalty_, batch, rows);
    v.seeds = vector(seeds_, batch, rows);
    v.positions = vector(positions_, batch, rows);
    v.num_logprobs = vector(num_logprobs_, batch, rows);
    v.bias_starts = vector(bias_starts_, batch, rows + 1);
    v.bias_ids = vector(bias_ids_, batch, any, &lengths.bias);
    v.bias_values = vector(bias_values_, batch, lengths.bias);
    v.banned_starts = vector(banned_starts_, batch, rows + 1);
    v.banned_ids = vector(banned_ids_, batch, any, &lengths.banned);
    v.prompt_starts = vector(prompt_starts_, batch, rows + 1);
    v.prompt_ids = vector(prompt_ids_, batch, any, &lengths.prompt);
    v.output_starts = vector(output_starts_, batch, rows + 1);
    v.output_ids = vector(output_ids_, batch, any, &lengths.output);
    v.mask_rows = vector(mask_rows_, batch, rows);
    read_mask(batch, (vocab + 31) / 32);
    trimtab::validate_sampling(v, lengths, vocab);
    most_logprobs_ = -1;
    for (int64_t row = 0; row < rows; ++row)
      most_logprobs_ = std::max(most_logprobs_, v.num_logprobs[row]);
    return view_;
  }

  bool wants_logprobs() const { return most_logprobs_ >= 0; }

  // Columns of top_ids and top_logprobs: the largest num_logprobs, at least 0.
  int64_t top_width() const { return std::max(most_logprobs_, 0); }

 private:
  static constexpr int64_t any = -1;

  template <typename T>
  static const T* vector(HeldArray<T, 1>& array, nanobind::handle batch, int64_t length,
                         int64_t* found = nullptr) {
    array.read(batch);
    if (length != any && array.length() != length)
      throw std::invalid_argument(std::string(array.name()) + ": must be of length " +
                                  std::to_string(length));
    if (found != nullptr) *found = array.length();
    return array.data();
  }

  void read_mask(nanobind::handle batch, int64_t words) {
    const ConstArray<uint32_t, 2>& mask = mask_.read(batch);
    view_.mask = mask.data();
    view_.num_masks = mask_.length();
    if (view_.num_masks > 0 && static_cast<int64_t>(mask.shape(1)) != words)
      throw std::invalid_argument("sampling.mask: must be ceil(vocab / 32) words wide");
  }

  HeldArray<float, 1> temperature_{"sampling.temperature"}, top_p_{"sampling.top_p"},
      min_p_{"sampling.min_p"}, repetition_penalty_{"sampling.repetition_penalty"},
      presence_penalty_{"sampling.presence_penalty"},
      frequency_penalty_{"sampling.frequency_penalty"}, bias_values_{"sampling.bias_values"};
  HeldArray<uint64_t, 1> seeds_{"sampling.seeds"};
  HeldArray<int32_t, 1> top_k_{"sampling.top_k"}, positions_{"sampling.positions"},
      num_logprobs_{"sampling.num_logprobs"}, bias_starts_{"sampling.bias_starts"},
      bias_ids_{"sampling.bias_ids"}, banned_starts_{"sampling.banned_starts"},
      banned_ids_{"sampling.banned_ids"}, prompt_starts_{"sampling.prompt_starts"},
      prompt_ids_{"sampling.prompt_ids"}, output_starts_{"sampling.output_starts"},
      output_ids_{"sampling.output_ids"}, mask_rows_{"sampling.mask_rows"};
  HeldArray<uint32_t, 2> mask_{"sampling.mask"};

  trimtab::SamplingView view_;
  int32_t most_logprobs_ = -1;
};
