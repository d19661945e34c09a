#pragma once

#include <memory>
#include <optional>
#include <utility>

#include "bindings/arrays.h"
#include "bindings/step_arrays.h"
#include "core/decoder.h"

// The decoder as Python sees it.
class BoundDecoder {
 public:
  explicit BoundDecoder(std::unique_ptr<trimtab::Decoder> decoder) : decoder_(std::move(decoder)) {}

  trimtab::KVCache& cache() { return decoder_->cache(); }
  trimtab::Decoder& decoder() { return *decoder_; }
  nanobind::tuple step(nanobind::handle batch, const std::optional<ConstArray<float, 2>>& inputs);

 private:
  // What a step without logprobs gives, read-only, and the very same objects while batches are of
  // the same size: making an array costs more than a thousand instructions.
  struct Nothing {
    int64_t rows = -1;
    nanobind::object logprobs, top_ids, top_logprobs;
  };
  const Nothing& nothing(int64_t rows);

  std::unique_ptr<trimtab::Decoder> decoder_;
  StepArrays arrays_;
  Nothing nothing_;
};
