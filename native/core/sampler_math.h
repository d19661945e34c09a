// The arithmetic of the sampler: plain loops over blocks of 64 tokens that compilers vectorise.
// Every sum has one order, fixed by the vocabulary size alone, and nothing is contracted, so the
// results are the same whatever vectors the machine has.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace trimtab::sampling {

constexpr int64_t kBlock = 64;  // tokens that share one stored maximum
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

inline int64_t num_blocks(int64_t vocab) { return (vocab + kBlock - 1) / kBlock; }

// exp(d) for d <= 0, within 2 ulp; 0 below -87 (float's smallest normal number is exp(-87.3)).
// Cody-Waite reduction to |r| <= ln(2)/2 and a Taylor polynomial of degree 7 (error 5e-9).
inline float exp_nonpositive(float d) {
  const float clamped = d > -87.0f ? d : -87.0f;
  const float shifted = clamped * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to int
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t exponent = static_cast<int32_t>(n);
  const float scale = std::bit_cast<float>((exponent + 127) << 23);
  return d > -87.0f ? p * scale : 0.0f;
}

struct Scan {
  float max;
  bool finite;  // no NaN and no +inf anywhere (-inf is allowed)
};

// Maxima of the blocks, and over all. NaN never becomes a maximum.
Scan scan_blocks(const float* x, int64_t vocab, float* block_max);

// Sum over all tokens of exp((x - max) / temperature): 16 float lanes within a block, doubles
// across blocks. `max` is finite.
double sum_weights(const float* x, int64_t vocab, float max, float temperature);

// The noise of a token is made of 52 bits, of word id % 4 of the Philox blocks with the counters
// (position, id / 4, 0, 0) for the first 32 and (position, id / 4, 1, 0) for the other 20. The
// first are cheap (a block serves four tokens) and settle nearly every comparison.
void first_noise_words(uint64_t seed, int32_t position, int64_t block,
                       uint32_t* words);  // [kBlock]
void first_noise_words_of(uint64_t seed, int32_t position, const int32_t* ids, int64_t count,
                          uint32_t* words);
uint64_t noise_bits(uint64_t seed, int32_t position, int32_t token_id);

struct Screen {
  float max, temperature;
  float min_weight;  // a smaller exp((x - max) / temperature) is out
  float bound;       // exp(-leading score) * 2^24, and a little more
};

// passed[i] = 1 for those of `count` (at most kBlock) tokens whose weight is large enough and whose
// noise, by its first word, may beat the leading score; else 0. False if there are none.
bool screen_tokens(const Screen& screen, const float* logits, const uint32_t* words, int64_t count,
                   int32_t* passed);

}  // namespace trimtab::sampling
