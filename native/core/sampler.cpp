#include "core/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "core/sampler_math.h"

namespace trimtab {

using namespace sampling;

namespace {

using Candidate = SamplerScratch::Candidate;

// The logits that one row chooses from, with their block maxima.
struct Row {
  const float* logits;
  const float* block_max;
  int64_t vocab;
  float max;
};

// The total order of candidates: larger logit first, then smaller id.
bool ranks_before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

struct Span {
  int32_t begin, end;
};

Span span_of(const int32_t* starts, int64_t row) {
  return starts == nullptr ? Span{0, 0} : Span{starts[row], starts[row + 1]};
}

void reserve(SamplerScratch& scratch, int64_t vocab) {
  const auto size = static_cast<size_t>(vocab);
  if (scratch.counts.size() >= size) return;
  scratch.logits.resize(size);
  scratch.block_max.resize(static_cast<size_t>(num_blocks(vocab)));
  scratch.adjusted_max.resize(scratch.block_max.size());
  scratch.selected_max.resize(scratch.block_max.size());
  scratch.candidates.reserve(size);
  scratch.counts.resize(size, 0);
}

// --- steps 1 to 3: bias, penalties, banned ids and mask ---

bool has_penalties(const SamplingView& sampling, int64_t row) {
  return sampling.repetition_penalty[row] != 1.0f || sampling.presence_penalty[row] != 0.0f ||
         sampling.frequency_penalty[row] != 0.0f;
}

bool has_mask(const SamplingView& sampling, int64_t row) {
  return sampling.mask_rows != nullptr && sampling.mask_rows[row] >= 0;
}

bool needs_adjustment(const SamplingView& sampling, int64_t row) {
  const Span bias = span_of(sampling.bias_starts, row);
  const Span banned = span_of(sampling.banned_starts, row);
  return bias.begin != bias.end || banned.begin != banned.end || has_penalties(sampling, row) ||
         has_mask(sampling, row);
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

// --- steps 5 and 6: top-k and top-p, without sorting the vocabulary ---

// All tokens with logit >= threshold, but never an impossible (-inf) one, by ascending id.
void collect(const Row& row, float threshold, std::vector<Candidate>& candidates) {
  candidates.clear();
  const float floor = std::max(threshold, std::numeric_limits<float>::lowest());
  for (int64_t block = 0; block < num_blocks(row.vocab); ++block) {
    if (row.block_max[block] < floor) continue;
    const int64_t end = std::min(row.vocab, (block + 1) * kBlock);
    for (int64_t id = block * kBlock; id < end; ++id) {
      if (row.logits[id] >= floor) {
        candidates.push_back({row.logits[id], static_cast<int32_t>(id)});
      }
    }
  }
}

// The first k tokens in candidate order (fewer if fewer are possible), in no particular order.
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

float weight_of(float logit, float max, float temperature) {
  return exp_nonpositive((logit - max) / temperature);
}

double sum_of(const Candidate* begin, const Candidate* end, float max, float temperature) {
  double sum = 0.0;
  for (const Candidate* c = begin; c != end; ++c) {
    sum += static_cast<double>(weight_of(c->logit, max, temperature));
  }
  return sum;
}

Candidate median(Candidate a, Candidate b, Candidate c) {
  if (ranks_before(b, a)) std::swap(a, b);
  if (!ranks_before(c, b)) return b;
  return ranks_before(c, a) ? a : c;
}

// Keeps the shortest prefix, in candidate order, whose weights sum to at least `target`: a
// quickselect by mass. `candidates` is left partitioned, not sorted. All are kept if they do not
// reach it.
void keep_mass(std::vector<Candidate>& candidates, double target, float max, float temperature) {
  constexpr int64_t small = 32;
  constexpr int max_rounds = 64;  // a bound on bad pivots; what is left is then sorted
  Candidate* low = candidates.data();
  Candidate* high = low + candidates.size();
  double mass = 0.0;  // of everything before `low`
  for (int round = 0; high - low > small && round < max_rounds; ++round) {
    const Candidate pivot = median(low[0], low[(high - low) / 2], high[-1]);
    Candidate* split =
        std::partition(low, high, [pivot](const Candidate& c) { return !ranks_before(pivot, c); });
    const double head = sum_of(low, split, max, temperature);
    if (mass + head >= target) {
      high = split;
    } else {
      mass += head;
      low = split;
    }
  }
  std::sort(low, high, ranks_before);
  while (low != high && mass < target) {
    mass += static_cast<double>(weight_of(low->logit, max, temperature));
    ++low;
  }
  candidates.resize(static_cast<size_t>(low - candidates.data()));
}

// Leaves in `candidates` the survivors of top-k and top-p.
void filter(const Row& row, int64_t k, float top_p, float temperature, SamplerScratch& scratch) {
  auto& candidates = scratch.candidates;
  double target = 0.0;
  if (k < row.vocab) {
    select_top(row, k, scratch);
    if (top_p >= 1.0f) return;
    std::sort(candidates.begin(), candidates.end(),
              [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
    target = top_p *
             sum_of(candidates.data(), candidates.data() + candidates.size(), row.max, temperature);
  } else {
    // The head of the distribution nearly always reaches p; widen it until it does.
    target = top_p * sum_weights(row.logits, row.vocab, row.max, temperature);
    for (const float depth : {4.0f, 8.0f, 16.0f, 32.0f, std::numeric_limits<float>::infinity()}) {
      collect(row, row.max - depth * temperature, candidates);
      const Candidate* begin = candidates.data();
      if (sum_of(begin, begin + candidates.size(), row.max, temperature) >= target) break;
    }
  }
  keep_mass(candidates, target, row.max, temperature);
}

// --- steps 4, 7 and 8: temperature, min-p and the Gumbel race ---

// Runs the race in blocks of at most 64. A token with scaled logit d beats the leading score s only
// if v < -log1p(-v) < exp(d - s), v being its noise: a comparison on the first bits of v settles
// most. The result is the same as scoring every token, in whatever order the blocks come.
class Race {
 public:
  Race(uint64_t seed, int32_t position, float max, float temperature, float min_p)
      : seed_(seed),
        position_(position),
        screen_{max, temperature, min_p, std::numeric_limits<float>::infinity()} {}

  // True if no token whose logit is at most `logit` can win any more.
  bool hopeless(float logit) const {
    constexpr double largest_noise = 36.75;  // -log(2^-53) = 36.74
    return scaled(logit) + largest_noise < score_;
  }

  // The `count` tokens from block * kBlock on.
  void run_block(const float* logits, int64_t block, int64_t count) {
    uint32_t words[kBlock];
    int32_t passed[kBlock];
    first_noise_words(seed_, position_, block, words);
    if (!screen_tokens(screen_, logits, words, count, passed)) return;
    for (int64_t i = 0; i < count; ++i) {
      if (passed[i]) enter(logits[i], static_cast<int32_t>(block * kBlock + i));
    }
  }

  // Any `count` tokens, at most kBlock.
  void run(const float* logits, const int32_t* ids, int64_t count) {
    uint32_t words[kBlock];
    int32_t passed[kBlock];
    first_noise_words_of(seed_, position_, ids, count, words);
    if (!screen_tokens(screen_, logits, words, count, passed)) return;
    for (int64_t i = 0; i < count; ++i) {
      if (passed[i]) enter(logits[i], ids[i]);
    }
  }

  int32_t winner() const { return winner_; }

 private:
  double scaled(float logit) const {
    return static_cast<double>((logit - screen_.max) / screen_.temperature);
  }

  void enter(float logit, int32_t id) {
    const double score = scaled(logit) + gumbel_noise(seed_, position_, id);
    if (score < score_ || (score == score_ && id > winner_)) return;
    score_ = score;
    winner_ = id;
    screen_.bound = static_cast<float>(std::exp(-score) * 16777216.0 * 1.0001);
  }

  const uint64_t seed_;
  const int32_t position_;
  Screen screen_;
  double score_ = -std::numeric_limits<double>::infinity();
  int32_t winner_ = -1;
};

void race_all(const Row& row, Race& race) {
  for (int64_t block = 0; block < num_blocks(row.vocab); ++block) {
    if (race.hopeless(row.block_max[block])) continue;
    const int64_t first = block * kBlock;
    race.run_block(row.logits + first, block, std::min(kBlock, row.vocab - first));
  }
}

void race_candidates(const std::vector<Candidate>& candidates, Race& race) {
  float logits[kBlock];
  int32_t ids[kBlock];
  const auto total = static_cast<int64_t>(candidates.size());
  for (int64_t first = 0; first < total; first += kBlock) {
    const int64_t count = std::min(kBlock, total - first);
    for (int64_t i = 0; i < count; ++i) {
      logits[i] = candidates[static_cast<size_t>(first + i)].logit;
      ids[i] = candidates[static_cast<size_t>(first + i)].id;
    }
    race.run(logits, ids, count);
  }
}

int32_t argmax(const Row& row) {
  const int64_t blocks = num_blocks(row.vocab);
  const int64_t block = std::find(row.block_max, row.block_max + blocks, row.max) - row.block_max;
  const float* begin = row.logits + block * kBlock;
  const float* end = row.logits + std::min(row.vocab, (block + 1) * kBlock);
  return static_cast<int32_t>(std::find(begin, end, row.max) - row.logits);
}

int32_t choose(const Row& row, const SamplingView& sampling, int64_t r, SamplerScratch& scratch) {
  const float temperature = sampling.temperature[r];
  const int64_t k = sampling.top_k[r] > 0 ? sampling.top_k[r] : row.vocab;
  if (temperature == 0.0f || k == 1) return argmax(row);
  Race race(sampling.seeds[r], sampling.positions[r], row.max, temperature, sampling.min_p[r]);
  const int32_t likeliest = argmax(row);  // always a survivor; its score dismisses most others
  race.run(&row.max, &likeliest, 1);
  if (k >= row.vocab && sampling.top_p[r] >= 1.0f) {
    race_all(row, race);
  } else {
    filter(row, k, sampling.top_p[r], temperature, scratch);
    race_candidates(scratch.candidates, race);
  }
  return race.winner();
}

// --- log-probabilities of the model's own logits ---

void write_logprobs(const Row& row, int32_t num_logprobs, int32_t target, int32_t token,
                    SamplerScratch& scratch, const SampleOutput& out) {
  const bool wants_target = target >= 0 && out.target_logprob != nullptr;
  if (num_logprobs < 0 && !wants_target) return;
  const double log_sum = std::log(sum_weights(row.logits, row.vocab, row.max, 1.0f));
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

double gumbel_noise(uint64_t seed, int32_t position, int32_t token_id) {
  const uint64_t bits = noise_bits(seed, position, token_id);
  const double v = (static_cast<double>(bits) + 0.5) * 0x1p-52;
  return -std::log(-std::log1p(-v));
}

void sample_row(const float* logits, int64_t vocab, const SamplingView& sampling, int64_t row,
                int32_t target, SamplerScratch& scratch, const SampleOutput& out) {
  reserve(scratch, vocab);
  *out.token = -1;
  *out.logprob = 0.0f;
  std::fill(out.top_ids, out.top_ids + out.top_width, -1);
  std::fill(out.top_logprobs, out.top_logprobs + out.top_width, 0.0f);
  if (out.target_logprob != nullptr) *out.target_logprob = 0.0f;

  const Scan scan = scan_blocks(logits, vocab, scratch.block_max.data());
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
    const Scan again = scan_blocks(adjusted.logits, vocab, scratch.adjusted_max.data());
    adjusted.max = again.max;
    finite = again.finite && again.max != kMinusInfinity;
  }
  if (finite) *out.token = choose(adjusted, sampling, row, scratch);
  write_logprobs(model, sampling.num_logprobs[row], target, *out.token, scratch, out);
}

}  // namespace trimtab
