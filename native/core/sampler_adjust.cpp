#include <algorithm>

#include "core/sampler_parts.h"

namespace trimtab::sampling {
namespace {

struct Span {
  int32_t begin, end;
};

Span span_of(const int32_t* starts, int64_t row) {
  return starts == nullptr ? Span{0, 0} : Span{starts[row], starts[row + 1]};
}

bool has_penalties(const SamplingView& sampling, int64_t row) {
  return sampling.repetition_penalty[row] != 1.0f || sampling.presence_penalty[row] != 0.0f ||
         sampling.frequency_penalty[row] != 0.0f;
}

bool has_mask(const SamplingView& sampling, int64_t row) {
  return sampling.mask_rows != nullptr && sampling.mask_rows[row] >= 0;
}

void apply_penalties(const SamplingView& sampling, int64_t row, float* logits, int32_t* counts) {
  constexpr int32_t done = -1;
  const float repetition = sampling.repetition_penalty[row];
  const Span prompt = span_of(sampling.prompt_starts, row);
  const Span output = span_of(sampling.output_starts, row);
  const auto repeat = [repetition](float value) {
    return value > 0.0f ? value / repetition : value * repetition;
  };
  for (int32_t i = output.begin; i < output.end; ++i) ++counts[sampling.output_ids[i]];
  for (int32_t i = output.begin; i < output.end; ++i) {
    const int32_t id = sampling.output_ids[i];
    if (counts[id] == done) continue;
    float value = repeat(logits[id]);
    value -= sampling.frequency_penalty[row] * static_cast<float>(counts[id]);
    value -= sampling.presence_penalty[row];
    logits[id] = value;
    counts[id] = done;
  }
  for (int32_t i = prompt.begin; i < prompt.end; ++i) {
    const int32_t id = sampling.prompt_ids[i];
    if (counts[id] == done) continue;
    logits[id] = repeat(logits[id]);
    counts[id] = done;
  }
  for (int32_t i = output.begin; i < output.end; ++i) counts[sampling.output_ids[i]] = 0;
  for (int32_t i = prompt.begin; i < prompt.end; ++i) counts[sampling.prompt_ids[i]] = 0;
}

void apply_mask(const uint32_t* mask, int64_t vocab, float* logits) {
  for (int64_t first = 0; first < vocab; first += 32) {
    const uint32_t word = mask[first / 32];
    if (word == ~uint32_t{0}) continue;
    const int64_t count = std::min<int64_t>(32, vocab - first);
    for (int64_t i = 0; i < count; ++i) {
      logits[first + i] = (word >> i) & 1u ? logits[first + i] : kMinusInfinity;
    }
  }
}

}  // namespace

bool needs_adjustment(const SamplingView& sampling, int64_t row) {
  const Span bias = span_of(sampling.bias_starts, row);
  const Span banned = span_of(sampling.banned_starts, row);
  return bias.begin != bias.end || banned.begin != banned.end || has_penalties(sampling, row) ||
         has_mask(sampling, row);
}

void adjust(const SamplingView& sampling, int64_t row, int64_t vocab, SamplerScratch& scratch) {
  float* logits = scratch.logits.data();
  const Span bias = span_of(sampling.bias_starts, row);
  for (int32_t i = bias.begin; i < bias.end; ++i) {
    logits[sampling.bias_ids[i]] += sampling.bias_values[i];
  }
  if (has_penalties(sampling, row)) {
    apply_penalties(sampling, row, logits, scratch.counts.data());
  }
  const Span banned = span_of(sampling.banned_starts, row);
  for (int32_t i = banned.begin; i < banned.end; ++i) {
    logits[sampling.banned_ids[i]] = kMinusInfinity;
  }
  if (has_mask(sampling, row)) {
    const int64_t words = (vocab + 31) / 32;
    apply_mask(sampling.mask + sampling.mask_rows[row] * words, vocab, logits);
  }
}

}  // namespace trimtab::sampling
