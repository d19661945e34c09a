// A trimtab.executors.base.SamplingBatch, held and checked, as the SamplingView that the core
// reads.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/sampler.h"

class SamplingArrays {
 public:
  // Keeps the batch's arrays alive. Throws std::invalid_argument for a wrong dtype, shape or value.
  SamplingArrays(nanobind::handle batch, int64_t rows, int64_t vocab) {
    trimtab::SamplingView& v = view_;
    trimtab::SamplingLengths lengths;
    v.rows = rows;
    v.temperature = vector<float>(batch, "temperature", rows);
    v.top_k = vector<int32_t>(batch, "top_k", rows);
    v.top_p = vector<float>(batch, "top_p", rows);
    v.min_p = vector<float>(batch, "min_p", rows);
    v.repetition_penalty = vector<float>(batch, "repetition_penalty", rows);
    v.presence_penalty = vector<float>(batch, "presence_penalty", rows);
    v.frequency_penalty = vector<float>(batch, "frequency_penalty", rows);
    v.seeds = vector<uint64_t>(batch, "seeds", rows);
    v.positions = vector<int32_t>(batch, "positions", rows);
    v.num_logprobs = vector<int32_t>(batch, "num_logprobs", rows);
    v.bias_starts = vector<int32_t>(batch, "bias_starts", rows + 1);
    v.bias_ids = vector<int32_t>(batch, "bias_ids", any, &lengths.bias);
    v.bias_values = vector<float>(batch, "bias_values", lengths.bias);
    v.banned_starts = vector<int32_t>(batch, "banned_starts", rows + 1);
    v.banned_ids = vector<int32_t>(batch, "banned_ids", any, &lengths.banned);
    v.prompt_starts = vector<int32_t>(batch, "prompt_starts", rows + 1);
    v.prompt_ids = vector<int32_t>(batch, "prompt_ids", any, &lengths.prompt);
    v.output_starts = vector<int32_t>(batch, "output_starts", rows + 1);
    v.output_ids = vector<int32_t>(batch, "output_ids", any, &lengths.output);
    v.mask_rows = vector<int32_t>(batch, "mask_rows", rows);
    read_mask(batch, (vocab + 31) / 32);
    trimtab::validate_sampling(v, lengths, vocab);
    for (int64_t row = 0; row < rows; ++row) {
      top_width_ = std::max<int64_t>(top_width_, v.num_logprobs[row]);
    }
  }

  const trimtab::SamplingView& view() const { return view_; }

  // Columns of top_ids and top_logprobs: the largest num_logprobs, at least 0.
  int64_t top_width() const { return top_width_; }

 private:
  static constexpr int64_t any = -1;

  [[noreturn]] static void refuse(const char* name, const std::string& rule) {
    throw std::invalid_argument("sampling." + std::string(name) + ": must be " + rule);
  }

  template <typename T>
  const T* vector(nanobind::handle batch, const char* name, int64_t length,
                  int64_t* found = nullptr) {
    using Array =
        nanobind::ndarray<const T, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
    keep_.push_back(batch.attr(name));
    Array array;
    if (!nanobind::try_cast<Array>(keep_.back(), array, false)) {
      refuse(name, "a contiguous vector of the documented dtype");
    }
    const auto size = static_cast<int64_t>(array.shape(0));
    if (length != any && size != length) refuse(name, "of length " + std::to_string(length));
    if (found != nullptr) *found = size;
    return array.data();
  }

  void read_mask(nanobind::handle batch, int64_t words) {
    using Array = nanobind::ndarray<const uint32_t, nanobind::ndim<2>, nanobind::c_contig,
                                    nanobind::device::cpu>;
    keep_.push_back(batch.attr("mask"));
    Array array;
    if (!nanobind::try_cast<Array>(keep_.back(), array, false)) {
      refuse("mask", "a contiguous uint32 matrix");
    }
    view_.mask = array.data();
    view_.num_masks = static_cast<int64_t>(array.shape(0));
    if (view_.num_masks > 0 && static_cast<int64_t>(array.shape(1)) != words) {
      refuse("mask", "ceil(vocab / 32) words wide");
    }
  }

  trimtab::SamplingView view_;
  int64_t top_width_ = 0;
  std::vector<nanobind::object> keep_;
};
