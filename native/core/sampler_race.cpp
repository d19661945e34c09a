// The Gumbel race. A token with scaled logit d beats the leading score s only if
// v < -log1p(-v) < exp(d - s), v being its noise: the first bits of v, against the block's largest
// weight, dismiss nearly every block. The result is the same as scoring every token.
#include <cmath>

#include "core/philox.h"
#include "core/sampler_parts.h"

namespace trimtab {
namespace sampling {
namespace {

// The noise of a token is made of 52 bits, of word id % 4 of the Philox blocks with the counters
// (position, id / 4, 0, 0) for the first 32 and (position, id / 4, 1, 0) for the other 20. The
// first are cheap (a block serves four tokens) and settle nearly every comparison.
uint64_t noise_bits(uint64_t seed, int32_t position, int32_t token_id) {
  const uint32_t key0 = static_cast<uint32_t>(seed);
  const uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  const uint32_t quad = static_cast<uint32_t>(token_id) / 4;
  const uint32_t lane = static_cast<uint32_t>(token_id) % 4;
  const uint32_t c0 = static_cast<uint32_t>(position);
  const uint64_t high = philox4x32_10(c0, quad, 0, 0, key0, key1).word[lane];
  const uint64_t low = philox4x32_10(c0, quad, 1, 0, key0, key1).word[lane];
  return high << 20 | low >> 12;
}

constexpr float kNoiseUnit = 16777216.0f;   // the screen sees v * 2^24, cut to an integer
constexpr float kSlack = 1.0001f;           // for the roundings of a bound
constexpr float kSmallestNoise = 0x1p-54f;  // half of the smallest v
constexpr float kMonotone = 0.9999f;        // a larger logit never has a weight much smaller

class Race {
 public:
  Race(const SamplingKernels& kernels, const Row& row, const RaceRules& rules)
      : kernels_(kernels), row_(row), rules_(rules) {}

  void enter(Candidate token) {
    if (ranks_before(rules_.cut, token)) return;
    const double scaled = static_cast<double>((token.logit - row_.max) / rules_.temperature);
    const double score = scaled + gumbel_noise(rules_.seed, rules_.position, token.id);
    if (score < score_ || (score == score_ && token.id > winner_.id)) return;
    score_ = score;
    winner_ = token;
    bound_ = static_cast<float>(std::exp(-score) * kNoiseUnit * kSlack);
  }

  // `weight`: of the block's largest logit.
  void run_block(int64_t block, float weight) {
    const float limit = weight * bound_ * kSlack;
    if (!(limit >= kSmallestNoise * kNoiseUnit)) return;  // NaN: the weight is 0
    if (weight < rules_.min_p * kMonotone || row_.block_max[block] < rules_.cut.logit) return;
    uint32_t words[kTokenBlock];
    if (!kernels_.noise_below(rules_.seed, rules_.position, block, limit, words)) return;
    const int64_t first = block * kTokenBlock;
    const int64_t count = row_.vocab - first < kTokenBlock ? row_.vocab - first : kTokenBlock;
    float weights[kTokenBlock];
    kernels_.weights(row_.logits + first, count, row_.max, rules_.temperature, weights);
    for (int64_t i = 0; i < count; ++i) {
      const float noise = static_cast<float>(static_cast<int32_t>(words[i] >> 8));
      if (noise < weights[i] * bound_ && weights[i] >= rules_.min_p)
        enter({row_.logits[first + i], static_cast<int32_t>(first + i)});
    }
  }

  Candidate winner() const { return winner_; }

 private:
  const SamplingKernels& kernels_;
  const Row& row_;
  const RaceRules& rules_;
  double score_ = -std::numeric_limits<double>::infinity();
  Candidate winner_{kMinusInfinity, -1};
  float bound_ = std::numeric_limits<float>::infinity();  // exp(-score_) 2^24, and a little more
};

}  // namespace

Candidate run_race(const SamplingKernels& kernels, const Row& row, const RaceRules& rules,
                   Candidate likeliest, SamplerScratch& scratch) {
  const int64_t blocks = num_blocks(row.vocab);
  kernels.weights(row.block_max, blocks, row.max, rules.temperature, scratch.block_weights.data());
  Race race(kernels, row, rules);
  race.enter(likeliest);  // always a survivor; its score dismisses most others
  for (int64_t block = 0; block < blocks; ++block)
    race.run_block(block, scratch.block_weights[static_cast<size_t>(block)]);
  return race.winner();
}

}  // namespace sampling

double gumbel_noise(uint64_t seed, int32_t position, int32_t token_id) {
  const uint64_t bits = sampling::noise_bits(seed, position, token_id);
  const double v = (static_cast<double>(bits) + 0.5) * 0x1p-52;
  return -std::log(-std::log1p(-v));
}

}  // namespace trimtab
