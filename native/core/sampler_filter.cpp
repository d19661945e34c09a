#include <algorithm>
#include <functional>

#include "core/sampler_parts.h"

namespace trimtab::sampling {
namespace {

// All tokens with logit >= threshold, but never an impossible (-inf) one, by ascending id.
void collect(const Row& row, float threshold, std::vector<Candidate>& candidates) {
  candidates.clear();
  const float floor = std::max(threshold, std::numeric_limits<float>::lowest());
  for (int64_t block = 0; block < num_blocks(row.vocab); ++block) {
    if (row.block_max[block] < floor) continue;
    const int64_t end = std::min(row.vocab, (block + 1) * kTokenBlock);
    for (int64_t id = block * kTokenBlock; id < end; ++id) {
      if (row.logits[id] >= floor) {
        candidates.push_back({row.logits[id], static_cast<int32_t>(id)});
      }
    }
  }
}

// Weights of candidates, one range at a time.
struct Weigher {
  const SamplingKernels& kernels;
  float max, temperature;

  double sum(const Candidate* begin, const Candidate* end) const {
    double sum = 0.0;
    while (begin != end) {
      float logits[kTokenBlock], weights[kTokenBlock];
      const int64_t count = std::min<int64_t>(kTokenBlock, end - begin);
      for (int64_t i = 0; i < count; ++i) logits[i] = begin[i].logit;
      kernels.weights(logits, count, max, temperature, weights);
      for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(weights[i]);
      begin += count;
    }
    return sum;
  }
};

Candidate median(Candidate a, Candidate b, Candidate c) {
  if (ranks_before(b, a)) std::swap(a, b);
  if (!ranks_before(c, b)) return b;
  return ranks_before(c, a) ? a : c;
}

// The last of the shortest prefix, in candidate order, that takes `mass` (below `target`) to at
// least `target`; the very last candidate if none does. A quickselect by mass: the candidates are
// reordered.
Candidate cut_candidates(std::vector<Candidate>& candidates, double mass, double target,
                         const Weigher& weigher) {
  constexpr int64_t small = 32;
  constexpr int max_rounds = 64;  // a bound on bad pivots; what is left is then sorted
  Candidate* low = candidates.data();
  Candidate* high = low + candidates.size();
  Candidate last = *low;
  for (int round = 0; high - low > small && round < max_rounds; ++round) {
    const Candidate pivot = median(low[0], low[(high - low) / 2], high[-1]);
    Candidate* split =
        std::partition(low, high, [pivot](const Candidate& c) { return !ranks_before(pivot, c); });
    const double head = weigher.sum(low, split);
    if (mass + head >= target) {
      high = split;
    } else {
      mass += head;
      low = split;
      last = pivot;
    }
  }
  std::sort(low, high, ranks_before);
  for (; low != high && mass < target; ++low) {
    mass += weigher.sum(low, low + 1);
    last = *low;
  }
  return last;
}

}  // namespace

// The k-th largest block maximum bounds the k-th largest logit from below.
void select_top(const Row& row, int64_t k, SamplerScratch& scratch) {
  const int64_t blocks = num_blocks(row.vocab);
  float threshold = kMinusInfinity;
  if (k < blocks) {
    float* maxima = scratch.selected_max.data();
    std::copy(row.block_max, row.block_max + blocks, maxima);
    std::nth_element(maxima, maxima + (k - 1), maxima + blocks, std::greater<float>());
    threshold = maxima[k - 1];
  }
  auto& candidates = scratch.candidates;
  collect(row, threshold, candidates);
  if (static_cast<int64_t>(candidates.size()) > k) {
    std::nth_element(candidates.begin(), candidates.begin() + k, candidates.end(), ranks_before);
    candidates.resize(static_cast<size_t>(k));
  }
}

Candidate cut_top_k(const SamplingKernels& kernels, const Row& row, int64_t k, float top_p,
                    float temperature, SamplerScratch& scratch) {
  select_top(row, k, scratch);
  auto& candidates = scratch.candidates;
  if (top_p >= 1.0f) return *std::max_element(candidates.begin(), candidates.end(), ranks_before);
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  const Weigher weigher{kernels, row.max, temperature};
  const double total = weigher.sum(candidates.data(), candidates.data() + candidates.size());
  return cut_candidates(candidates, 0.0, top_p * total, weigher);
}

// By a histogram of depths below the largest logit: only the tokens of the decisive bin are
// ordered.
Candidate cut_top_p(const SamplingKernels& kernels, const Row& row, double target,
                    float temperature, SamplerScratch& scratch) {
  constexpr int num_bins = 1024;
  constexpr float bins_per_unit = 11.0f;  // weights vanish at a depth of 87
  const auto bin_of = [&](float logit) {
    const float bin = (row.max - logit) / temperature * bins_per_unit;
    return bin < num_bins - 1 ? static_cast<int>(bin) : num_bins - 1;
  };
  double mass[num_bins] = {};
  for (int64_t block = 0; block < num_blocks(row.vocab); ++block) {
    const int64_t first = block * kTokenBlock;
    const int64_t count = std::min(kTokenBlock, row.vocab - first);
    float weights[kTokenBlock];
    kernels.weights(row.logits + first, count, row.max, temperature, weights);
    for (int64_t i = 0; i < count; ++i)
      mass[bin_of(row.logits[first + i])] += static_cast<double>(weights[i]);
  }
  int bin = 0;
  double before = 0.0;
  for (; bin < num_bins && before + mass[bin] < target; ++bin) before += mass[bin];
  if (bin == num_bins) return kNoCut;
  auto& candidates = scratch.candidates;
  candidates.clear();
  for (int64_t block = 0; block < num_blocks(row.vocab); ++block) {
    if (bin_of(row.block_max[block]) > bin) continue;
    const int64_t end = std::min(row.vocab, (block + 1) * kTokenBlock);
    for (int64_t id = block * kTokenBlock; id < end; ++id)
      if (bin_of(row.logits[id]) == bin)
        candidates.push_back({row.logits[id], static_cast<int32_t>(id)});
  }
  return cut_candidates(candidates, before, target, {kernels, row.max, temperature});
}

}  // namespace trimtab::sampling
