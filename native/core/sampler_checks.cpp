// What the border checks, once a batch, so that sample_row need not.
#include <limits>
#include <stdexcept>
#include <string>

#include "core/sampler.h"

namespace trimtab {

namespace {

[[noreturn]] void refuse(const char* field, int64_t row, const std::string& rule) {
  throw std::invalid_argument("sampling." + std::string(field) + "[" + std::to_string(row) +
                              "]: must be " + rule);
}

// Bounds are inclusive; written so that NaN fails.
void check_range(const char* field, const float* values, int64_t rows, float low, float high,
                 const char* rule) {
  for (int64_t row = 0; row < rows; ++row) {
    if (!(values[row] >= low && values[row] <= high)) refuse(field, row, rule);
  }
}

void check_ragged(const char* field, const int32_t* starts, const int32_t* ids, int64_t length,
                  int64_t rows, int64_t vocab) {
  if (starts == nullptr) return;
  int64_t previous = 0;
  for (int64_t row = 0; row <= rows; ++row) {
    if (starts[row] < previous || starts[row] > length || (row == 0 && starts[row] != 0)) {
      refuse(field, row, "ascending starts from 0 within the ids");
    }
    previous = starts[row];
  }
  for (int64_t i = 0; i < previous; ++i) {
    if (ids[i] < 0 || ids[i] >= vocab) refuse(field, i, "a token id below the vocabulary size");
  }
}

}  // namespace

void validate_sampling(const SamplingView& sampling, const SamplingLengths& lengths,
                       int64_t vocab) {
  constexpr float tiny = std::numeric_limits<float>::min();
  constexpr float huge = std::numeric_limits<float>::max();
  const int64_t rows = sampling.rows;
  if (vocab < 1 || vocab > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument("the vocabulary size must fit 31 bits and not be 0");
  }
  check_range("temperature", sampling.temperature, rows, 0.0f, huge, "finite and >= 0");
  check_range("top_p", sampling.top_p, rows, tiny, 1.0f, "in (0, 1]");
  check_range("min_p", sampling.min_p, rows, 0.0f, 1.0f, "in [0, 1]");
  check_range("repetition_penalty", sampling.repetition_penalty, rows, tiny, huge,
              "finite and > 0");
  check_range("presence_penalty", sampling.presence_penalty, rows, -huge, huge, "finite");
  check_range("frequency_penalty", sampling.frequency_penalty, rows, -huge, huge, "finite");
  check_ragged("bias", sampling.bias_starts, sampling.bias_ids, lengths.bias, rows, vocab);
  check_range("bias_values", sampling.bias_values, lengths.bias, -huge, huge, "finite");
  check_ragged("banned", sampling.banned_starts, sampling.banned_ids, lengths.banned, rows, vocab);
  check_ragged("prompt", sampling.prompt_starts, sampling.prompt_ids, lengths.prompt, rows, vocab);
  check_ragged("output", sampling.output_starts, sampling.output_ids, lengths.output, rows, vocab);
  for (int64_t row = 0; row < rows; ++row) {
    if (sampling.num_logprobs[row] < -1) refuse("num_logprobs", row, "at least -1");
    if (sampling.mask_rows != nullptr && sampling.mask_rows[row] >= sampling.num_masks) {
      refuse("mask_rows", row, "a row of the mask, or -1");
    }
  }
}

}  // namespace trimtab
