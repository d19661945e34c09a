// The arithmetic of the sampler: plain loops over blocks of 64 tokens that compilers vectorise.
// Every sum has one order, fixed by the vocabulary size alone.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "core/philox.h"

namespace trimtab::sampling {

constexpr int64_t kBlock = 64;  // tokens that share one stored maximum
constexpr int64_t kLanes = 16;
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
inline Scan scan_blocks(const float* x, int64_t vocab, float* block_max) {
  constexpr float largest = std::numeric_limits<float>::max();
  Scan scan{kMinusInfinity, true};
  for (int64_t block = 0; block * kBlock < vocab; ++block) {
    const float* values = x + block * kBlock;
    const int64_t count = std::min(kBlock, vocab - block * kBlock);
    float lane_max[kLanes];
    int32_t bad[kLanes] = {};
    std::fill(lane_max, lane_max + kLanes, kMinusInfinity);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      for (int64_t j = 0; j < kLanes; ++j) {
        const float value = values[i + j];
        lane_max[j] = value > lane_max[j] ? value : lane_max[j];
        bad[j] |= !(value <= largest);
      }
    }
    for (; i < count; ++i) {
      lane_max[0] = values[i] > lane_max[0] ? values[i] : lane_max[0];
      bad[0] |= !(values[i] <= largest);
    }
    float maximum = kMinusInfinity;
    int32_t any_bad = 0;
    for (int64_t j = 0; j < kLanes; ++j) {
      maximum = lane_max[j] > maximum ? lane_max[j] : maximum;
      any_bad |= bad[j];
    }
    block_max[block] = maximum;
    scan.max = maximum > scan.max ? maximum : scan.max;
    scan.finite = scan.finite && any_bad == 0;
  }
  return scan;
}

// Sum over all tokens of exp((x - max) / temperature): 16 float lanes within a block, doubles
// across blocks. `max` is finite.
inline double sum_weights(const float* x, int64_t vocab, float max, float temperature) {
  double total[kLanes] = {};
  for (int64_t block = 0; block * kBlock < vocab; ++block) {
    const float* values = x + block * kBlock;
    const int64_t count = std::min(kBlock, vocab - block * kBlock);
    float lane[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      for (int64_t j = 0; j < kLanes; ++j) {
        lane[j] += exp_nonpositive((values[i + j] - max) / temperature);
      }
    }
    for (; i < count; ++i) {
      lane[i % kLanes] += exp_nonpositive((values[i] - max) / temperature);
    }
    for (int64_t j = 0; j < kLanes; ++j) total[j] += static_cast<double>(lane[j]);
  }
  double sum = 0.0;
  for (int64_t j = 0; j < kLanes; ++j) sum += total[j];
  return sum;
}

// The first word of the noise of `count` tokens, so that most of them can be dismissed unlogged.
inline void first_noise_words(uint64_t seed, int32_t position, const int32_t* ids, int64_t count,
                              uint32_t* words) {
  const uint32_t key0 = static_cast<uint32_t>(seed);
  const uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  const uint32_t c0 = static_cast<uint32_t>(position);
  for (int64_t i = 0; i < count; ++i) {
    words[i] = philox4x32_10(c0, static_cast<uint32_t>(ids[i]), 0, 0, key0, key1).word[0];
  }
}

}  // namespace trimtab::sampling
