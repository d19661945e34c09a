// What the sampler does over a whole vocabulary. Every sum has one order, fixed by the vocabulary
// size alone, and nothing is contracted: the results are the same bits on every ISA path.
#pragma once

#include <cstdint>

#include "kernels/isa_namespace.h"

namespace trimtab {

constexpr int64_t kTokenBlock = 64;  // tokens that share one stored maximum

struct LogitScan {
  float max;    // NaN never becomes a maximum; -inf if nothing is larger
  bool finite;  // no NaN and no +inf anywhere (-inf is allowed)
};

// Sums of weights, see SamplingKernels::weights.
struct TokenMass {
  double total;
  double before;  // of the tokens that rank before the pivot
};

struct SamplingKernels {
  // Maxima of the blocks of a vocabulary, and over all.
  LogitScan (*scan)(const float* logits, int64_t vocab, float* block_max);

  // out[i] = exp((logits[i] - max) / temperature), within 2 ulp, 0 below exp(-87); max is finite
  // and no logit is larger.
  void (*weights)(const float* logits, int64_t count, float max, float temperature, float* out);

  // Sums over all tokens: 16 float lanes within a block, doubles across blocks. A token ranks
  // before the pivot if its logit is larger, or as large and its id smaller. With pivot_id 0 and
  // pivot +inf, none does.
  TokenMass (*mass)(const float* logits, int64_t vocab, float max, float temperature, float pivot,
                    int64_t pivot_id);

  // About the same sums, several times faster: each within 1 / 4096 of its exact value, or NaN for
  // temperatures next to 0. `before` is of all tokens whose logit is at least the pivot. Not the
  // same bits on every path: only for decisions that are then certain.
  TokenMass (*rough_mass)(const float* logits, int64_t vocab, float max, float temperature,
                          float pivot);

  // The first noise words (core/philox.h, draw 0) of the 64 tokens of a block. If the upper 24 bits
  // of none of them are below `limit`, returns false, and `words` is not written.
  bool (*noise_below)(uint64_t seed, int32_t position, int64_t block, float limit, uint32_t* words);
};

#if defined(TRIMTAB_ISA)
namespace TRIMTAB_ISA {
SamplingKernels sampling_kernels();
}
#endif

}  // namespace trimtab
