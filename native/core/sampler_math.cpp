#include "core/sampler_math.h"

#include <algorithm>

#include "core/philox.h"

// The same loops compiled for wider vectors too, chosen when the program is loaded.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define TRIMTAB_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef TRIMTAB_WIDE
#define TRIMTAB_WIDE
#endif

namespace trimtab::sampling {

namespace {

constexpr int64_t kLanes = 16;

struct BlockScan {
  float max;
  bool finite;
};

// Of fewer than kBlock values.
BlockScan scan_tail(const float* values, int64_t count) {
  BlockScan scan{kMinusInfinity, true};
  for (int64_t i = 0; i < count; ++i) {
    scan.max = values[i] > scan.max ? values[i] : scan.max;
    scan.finite = scan.finite && values[i] <= std::numeric_limits<float>::max();
  }
  return scan;
}

}  // namespace

TRIMTAB_WIDE
Scan scan_blocks(const float* x, int64_t vocab, float* block_max) {
  constexpr float largest = std::numeric_limits<float>::max();
  Scan scan{kMinusInfinity, true};
  const int64_t full = vocab / kBlock;
  int32_t bad[kLanes] = {};
  for (int64_t block = 0; block < full; ++block) {
    const float* values = x + block * kBlock;
    float lane[kLanes];
    for (int64_t j = 0; j < kLanes; ++j) lane[j] = kMinusInfinity;
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      for (int64_t j = 0; j < kLanes; ++j) {
        const float value = values[i + j];
        lane[j] = value > lane[j] ? value : lane[j];
        bad[j] |= value <= largest ? 0 : 1;
      }
    }
    for (int64_t width = kLanes / 2; width > 0; width /= 2) {
      for (int64_t j = 0; j < width; ++j) {
        lane[j] = lane[j + width] > lane[j] ? lane[j + width] : lane[j];
      }
    }
    block_max[block] = lane[0];
    scan.max = lane[0] > scan.max ? lane[0] : scan.max;
  }
  for (int64_t j = 0; j < kLanes; ++j) scan.finite = scan.finite && bad[j] == 0;
  if (full * kBlock < vocab) {
    const BlockScan tail = scan_tail(x + full * kBlock, vocab - full * kBlock);
    block_max[full] = tail.max;
    scan.max = tail.max > scan.max ? tail.max : scan.max;
    scan.finite = scan.finite && tail.finite;
  }
  return scan;
}

TRIMTAB_WIDE
double sum_weights(const float* x, int64_t vocab, float max, float temperature) {
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
    for (int64_t j = 0; i + j < count; ++j) {
      lane[j] += exp_nonpositive((values[i + j] - max) / temperature);
    }
    for (int64_t j = 0; j < kLanes; ++j) total[j] += static_cast<double>(lane[j]);
  }
  double sum = 0.0;
  for (int64_t j = 0; j < kLanes; ++j) sum += total[j];
  return sum;
}

TRIMTAB_WIDE
void first_noise_words(uint64_t seed, int32_t position, int64_t block, uint32_t* words) {
  constexpr int64_t quads = kBlock / 4;
  const uint32_t key0 = static_cast<uint32_t>(seed);
  const uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  const uint32_t first = static_cast<uint32_t>(block * quads);
  for (int64_t i = 0; i < quads; ++i) {
    const PhiloxBlock quad = philox4x32_10(static_cast<uint32_t>(position),
                                           first + static_cast<uint32_t>(i), 0, 0, key0, key1);
    for (int64_t j = 0; j < 4; ++j) words[4 * i + j] = quad.word[j];
  }
}

TRIMTAB_WIDE
void first_noise_words_of(uint64_t seed, int32_t position, const int32_t* ids, int64_t count,
                          uint32_t* words) {
  const uint32_t key0 = static_cast<uint32_t>(seed);
  const uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t id = static_cast<uint32_t>(ids[i]);
    const PhiloxBlock quad =
        philox4x32_10(static_cast<uint32_t>(position), id >> 2, 0, 0, key0, key1);
    const uint32_t even = (id & 2) != 0 ? quad.word[2] : quad.word[0];
    const uint32_t odd = (id & 2) != 0 ? quad.word[3] : quad.word[1];
    words[i] = (id & 1) != 0 ? odd : even;
  }
}

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

TRIMTAB_WIDE
bool screen_tokens(const Screen& screen, const float* logits, const uint32_t* words, int64_t count,
                   int32_t* passed) {
  const float max = screen.max, temperature = screen.temperature;
  const float min_weight = screen.min_weight, bound = screen.bound;
  int32_t any = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float noise = static_cast<float>(static_cast<int32_t>(words[i] >> 8));  // v * 2^24, cut
    const float weight = exp_nonpositive((logits[i] - max) / temperature);
    passed[i] = (noise < weight * bound) & (weight >= min_weight) ? 1 : 0;
    any |= passed[i];
  }
  return any != 0;
}

}  // namespace trimtab::sampling
