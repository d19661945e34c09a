// The parts of the sampler, for core/sampler*.cpp alone.
#pragma once

#include <cstdint>
#include <limits>

#include "core/sampler.h"

namespace trimtab::sampling {

using Candidate = SamplerScratch::Candidate;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

inline int64_t num_blocks(int64_t vocab) { return (vocab + kTokenBlock - 1) / kTokenBlock; }

// The logits that one row chooses from, with their block maxima.
struct Row {
  const float* logits;
  const float* block_max;
  int64_t vocab;
  float max;
};

// The total order of candidates: larger logit first, then smaller id.
inline bool ranks_before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// Ranks after every token: cuts nothing off.
constexpr Candidate kNoCut{kMinusInfinity, std::numeric_limits<int32_t>::max()};

// --- steps 1 to 3: bias, penalties, banned ids and mask (sampler_adjust.cpp) ---

bool needs_adjustment(const SamplingView& sampling, int64_t row);

// Changes scratch.logits, a copy of the model's.
void adjust(const SamplingView& sampling, int64_t row, int64_t vocab, SamplerScratch& scratch);

// --- steps 5 and 6: top-k and top-p, without sorting the vocabulary (sampler_filter.cpp) ---

// Leaves in scratch.candidates the first k tokens in candidate order (fewer if fewer are possible),
// in no particular order.
void select_top(const Row& row, int64_t k, SamplerScratch& scratch);

// The last survivor of top-k, then top-p; k < vocab.
Candidate cut_top_k(const SamplingKernels& kernels, const Row& row, int64_t k, float top_p,
                    float temperature, SamplerScratch& scratch);

// The last token of the shortest prefix, in candidate order, whose weights sum to at least
// `target`; kNoCut if all of them do not.
Candidate cut_top_p(const SamplingKernels& kernels, const Row& row, double target,
                    float temperature, SamplerScratch& scratch);

// --- steps 4, 7 and 8: temperature, min-p and the Gumbel race (sampler_race.cpp) ---

struct RaceRules {
  uint64_t seed;
  int32_t position;
  float temperature;
  float min_p;
  Candidate cut;  // who ranks after it does not take part
};

// The token with the largest (logit - max) / temperature + noise, of equal ones the smallest id.
// `likeliest` is the first in candidate order.
Candidate run_race(const SamplingKernels& kernels, const Row& row, const RaceRules& rules,
                   Candidate likeliest, SamplerScratch& scratch);

}  // namespace trimtab::sampling
