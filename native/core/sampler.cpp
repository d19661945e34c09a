#include "core/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/sampler_parts.h"

namespace trimtab {

using namespace sampling;

namespace {

Candidate first_candidate(const Row& row) {
  const int64_t blocks = num_blocks(row.vocab);
  const int64_t block = std::find(row.block_max, row.block_max + blocks, row.max) - row.block_max;
  const float* begin = row.logits + block * kTokenBlock;
  const float* end = row.logits + std::min(row.vocab, (block + 1) * kTokenBlock);
  const float* place = std::find(begin, end, row.max);
  return {*place, static_cast<int32_t>(place - row.logits)};
}

double total_mass(const SamplingKernels& kernels, const Row& row, float temperature) {
  const float nobody = std::numeric_limits<float>::infinity();
  return kernels.mass(row.logits, row.vocab, row.max, temperature, nobody, 0).total;
}

// Whether the winner lies inside top-p for certain, by sums that need not be exact.
bool surely_inside(const SamplingKernels& kernels, const Row& row, float temperature, float top_p,
                   Candidate winner) {
  constexpr double sure = 1.0 - 1e-3;
  const TokenMass mass =
      kernels.rough_mass(row.logits, row.vocab, row.max, temperature, winner.logit);
  const double own = std::exp(static_cast<double>(winner.logit - row.max) / temperature);
  return mass.before - own * sure < top_p * mass.total * sure;
}

// Top-p over the whole vocabulary: whoever wins the race among all and lies inside top-p wins among
// its survivors too, so where top-p ends matters only if the winner lies outside.
int32_t choose_top_p(const SamplingKernels& kernels, const Row& row, RaceRules rules, float top_p,
                     Candidate likeliest, SamplerScratch& scratch) {
  constexpr double sure = 1.0 - 1e-5;  // for the rounding of sums
  const Candidate winner = run_race(kernels, row, rules, likeliest, scratch);
  if (winner.id == likeliest.id) return winner.id;
  if (surely_inside(kernels, row, rules.temperature, top_p, winner)) return winner.id;
  const TokenMass mass =
      kernels.mass(row.logits, row.vocab, row.max, rules.temperature, winner.logit, winner.id);
  const double target = top_p * mass.total;
  if (mass.before < target * sure) return winner.id;
  rules.cut = cut_top_p(kernels, row, target, rules.temperature, scratch);
  return run_race(kernels, row, rules, likeliest, scratch).id;
}

int32_t choose(const SamplingKernels& kernels, const Row& row, const SamplingView& sampling,
               int64_t r, SamplerScratch& scratch) {
  const float temperature = sampling.temperature[r], top_p = sampling.top_p[r];
  const int64_t k = sampling.top_k[r] > 0 ? sampling.top_k[r] : row.vocab;
  const Candidate likeliest = first_candidate(row);
  if (temperature == 0.0f || k == 1) return likeliest.id;
  RaceRules rules{sampling.seeds[r], sampling.positions[r], temperature, sampling.min_p[r], kNoCut};
  if (k >= row.vocab && top_p < 1.0f)
    return choose_top_p(kernels, row, rules, top_p, likeliest, scratch);
  if (k < row.vocab) rules.cut = cut_top_k(kernels, row, k, top_p, temperature, scratch);
  return run_race(kernels, row, rules, likeliest, scratch).id;
}

// --- log-probabilities of the model's own logits ---

void write_logprobs(const SamplingKernels& kernels, const Row& row, int32_t num_logprobs,
                    int32_t target, int32_t token, SamplerScratch& scratch,
                    const SampleOutput& out) {
  const bool wants_target = target >= 0 && out.target_logprob != nullptr;
  if (num_logprobs < 0 && !wants_target) return;
  const double log_sum = std::log(total_mass(kernels, row, 1.0f));
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - static_cast<double>(row.max) - log_sum);
  };
  if (wants_target) *out.target_logprob = logprob(row.logits[target]);
  if (num_logprobs < 0 || token < 0) return;
  *out.logprob = logprob(row.logits[token]);
  const int64_t wanted = std::min<int64_t>(num_logprobs, out.top_width);
  if (wanted <= 0) return;
  select_top(row, std::min(wanted, row.vocab), scratch);
  std::sort(scratch.candidates.begin(), scratch.candidates.end(), ranks_before);
  for (size_t i = 0; i < scratch.candidates.size(); ++i) {
    out.top_ids[i] = scratch.candidates[i].id;
    out.top_logprobs[i] = logprob(scratch.candidates[i].logit);
  }
}

}  // namespace

void SamplerScratch::reserve(int64_t vocab) {
  const auto size = static_cast<size_t>(vocab);
  if (counts.size() >= size) return;
  logits.resize(size);
  block_max.resize(static_cast<size_t>(num_blocks(vocab)));
  adjusted_max.resize(block_max.size());
  selected_max.resize(block_max.size());
  block_weights.resize(block_max.size());
  candidates.reserve(size);
  counts.resize(size, 0);
}

void sample_row(const SamplingKernels& kernels, const float* logits, int64_t vocab,
                const SamplingView& sampling, int64_t row, int32_t target, SamplerScratch& scratch,
                const SampleOutput& out) {
  scratch.reserve(vocab);
  *out.token = -1;
  *out.logprob = 0.0f;
  std::fill(out.top_ids, out.top_ids + out.top_width, -1);
  std::fill(out.top_logprobs, out.top_logprobs + out.top_width, 0.0f);
  if (out.target_logprob != nullptr) *out.target_logprob = 0.0f;

  const LogitScan scan = kernels.scan(logits, vocab, scratch.block_max.data());
  if (!scan.finite || scan.max == kMinusInfinity) {
    if (out.target_logprob != nullptr && target >= 0) {
      *out.target_logprob = std::numeric_limits<float>::quiet_NaN();
    }
    return;
  }
  const Row model{logits, scratch.block_max.data(), vocab, scan.max};
  Row adjusted = model;
  bool finite = true;
  if (needs_adjustment(sampling, row)) {
    std::copy(logits, logits + vocab, scratch.logits.data());
    adjust(sampling, row, vocab, scratch);
    adjusted.logits = scratch.logits.data();
    adjusted.block_max = scratch.adjusted_max.data();
    const LogitScan again = kernels.scan(adjusted.logits, vocab, scratch.adjusted_max.data());
    adjusted.max = again.max;
    finite = again.finite && again.max != kMinusInfinity;
  }
  if (finite) *out.token = choose(kernels, adjusted, sampling, row, scratch);
  write_logprobs(kernels, model, sampling.num_logprobs[row], target, *out.token, scratch, out);
}

}  // namespace trimtab
