#include "kernels/sampling_kernels.h"

#include "kernels/simd.h"

namespace trimtab::TRIMTAB_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();

// The next 16 logits, of which `left` exist; the others are impossible tokens.
TRIMTAB_INLINE F32x16 load_logits(const float* logits, int64_t left) {
  if (left >= kLanes) return load(logits);
  float lanes[kLanes];
  store(lanes, set1(-kInfinity));
  for (int64_t i = 0; i < left; ++i) lanes[i] = logits[i];
  return load(lanes);
}

// exp(d) for d <= 0. Cody-Waite reduction to |r| <= ln(2)/2 and a Taylor polynomial of degree 7
// (error 5e-9); rounded at every operation, so that paths with and without fused ones agree.
TRIMTAB_INLINE F32x16 exp_nonpositive(F32x16 d) {
  const F32x16 lowest = set1(-87.0f), rounder = set1(12582912.0f);  // 1.5 * 2^23: rounds to int
  const F32x16 clamped = max(d, lowest);
  const F32x16 shifted = add(mul(clamped, set1(1.44269504088896341f)), rounder);
  const F32x16 n = sub(shifted, rounder);
  const F32x16 r = add(sub(clamped, mul(n, set1(0.693359375f))), mul(n, set1(2.12194440e-4f)));
  F32x16 p = set1(1.0f / 5040.0f);
  p = add(mul(p, r), set1(1.0f / 720.0f));
  p = add(mul(p, r), set1(1.0f / 120.0f));
  p = add(mul(p, r), set1(1.0f / 24.0f));
  p = add(mul(p, r), set1(1.0f / 6.0f));
  p = add(mul(p, r), set1(0.5f));
  p = add(mul(p, r), set1(1.0f));
  p = add(mul(p, r), set1(1.0f));
  const I32x16 exponent = sub(as_i32(shifted), as_i32(rounder));
  const F32x16 scale = as_f32(shift_left<23>(add(exponent, set1(127))));
  return select(less(lowest, d), mul(p, scale), zero_f32());
}

// 2^t for -126 <= t <= 0, within 1e-4: the integer part goes into the exponent.
TRIMTAB_INLINE F32x16 rough_exp2(F32x16 t) {
  const F32x16 rounder = set1(12582912.0f);
  const F32x16 shifted = add(t, rounder);
  const F32x16 r = sub(t, sub(shifted, rounder));
  F32x16 p = set1(0.05517166f);
  p = add(mul(p, r), set1(0.24261112f));
  p = add(mul(p, r), set1(0.69326099f));
  p = add(mul(p, r), set1(0.99992807f));
  return as_f32(add(as_i32(p), shift_left<23>(as_i32(shifted))));
}

LogitScan scan(const float* logits, int64_t vocab, float* block_max) {
  const F32x16 infinity = set1(kInfinity);
  F32x16 best = set1(-kInfinity);
  I32x16 finite = set1(1);
  const auto look = [&](int64_t id, F32x16 block) TRIMTAB_INLINE_LAMBDA {
    const F32x16 x = load_logits(logits + id, vocab - id);
    finite = select(less(x, infinity), finite, zero_i32());
    return max(x, block);  // NaN: the block's
  };
  for (int64_t first = 0; first < vocab; first += kTokenBlock) {
    F32x16 block = set1(-kInfinity);
    unroll<kTokenBlock / kLanes>(
        [&](auto i) TRIMTAB_INLINE_LAMBDA { block = look(first + i * kLanes, block); });
    block_max[first / kTokenBlock] = reduce_max(block);
    best = max(block, best);
  }
  return {reduce_max(best), reduce_add(finite) == kLanes};
}

void weights(const float* logits, int64_t count, float max, float temperature, float* out) {
  const F32x16 top = set1(max), divisor = set1(temperature);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    store(out + i, exp_nonpositive(div(sub(load(logits + i), top), divisor)));
  if (i == count) return;
  const F32x16 last = load_logits(logits + i, count - i);
  store_tail(out + i, exp_nonpositive(div(sub(last, top), divisor)), static_cast<int>(count - i));
}

TokenMass mass(const float* logits, int64_t vocab, float max, float temperature, float pivot,
               int64_t pivot_id) {
  const F32x16 top = set1(max), divisor = set1(temperature);
  const int64_t pivot_group = pivot_id / kLanes;
  double total[kLanes] = {}, before[kLanes] = {};
  float lane_total[kLanes], lane_before[kLanes];
  // What a logit must exceed: where ids are smaller, as large a logit is enough.
  float bars[3][kLanes];
  const float below = __builtin_nextafterf(pivot, -kInfinity);
  for (int i = 0; i < kLanes; ++i) {
    bars[0][i] = below;
    bars[1][i] = i < pivot_id % kLanes ? below : pivot;
    bars[2][i] = pivot;
  }
  for (int64_t first = 0; first < vocab; first += kTokenBlock) {
    F32x16 sum = zero_f32(), sum_before = zero_f32();
    unroll<kTokenBlock / kLanes>([&](auto i) TRIMTAB_INLINE_LAMBDA {
      const int64_t group = first / kLanes + i;
      const F32x16 x = load_logits(logits + group * kLanes, vocab - group * kLanes);
      const F32x16 bar = load(bars[group < pivot_group ? 0 : group == pivot_group ? 1 : 2]);
      const F32x16 weight = exp_nonpositive(div(sub(x, top), divisor));
      sum = add(sum, weight);
      sum_before = add(sum_before, select(less(bar, x), weight, zero_f32()));
    });
    store(lane_total, sum);
    store(lane_before, sum_before);
    for (int i = 0; i < kLanes; ++i) total[i] += static_cast<double>(lane_total[i]);
    for (int i = 0; i < kLanes; ++i) before[i] += static_cast<double>(lane_before[i]);
  }
  TokenMass result = {0.0, 0.0};
  for (int i = 0; i < kLanes; ++i) result.total += total[i];
  for (int i = 0; i < kLanes; ++i) result.before += before[i];
  return result;
}

// Summed by spans of 16 blocks, so that float sums lose nothing that matters.
TokenMass rough_mass(const float* logits, int64_t vocab, float largest, float temperature,
                     float pivot) {
  constexpr int64_t kSpan = 16 * kTokenBlock;
  const F32x16 top = set1(largest), scale = set1(1.44269504f / temperature), lowest = set1(-126.0f);
  const F32x16 bar = set1(__builtin_nextafterf(pivot, -kInfinity));
  F32x16 total = zero_f32(), before = zero_f32();
  for (int64_t first = 0; first < vocab; first += kSpan) {
    F32x16 sum = zero_f32(), sum_before = zero_f32();
    const int64_t last = first + kSpan < vocab ? first + kSpan : vocab;
    for (int64_t id = first; id < last; id += kLanes) {
      const F32x16 x = load_logits(logits + id, vocab - id);
      const F32x16 weight = rough_exp2(max(mul(sub(x, top), scale), lowest));
      sum = add(sum, weight);
      sum_before = add(sum_before, select(less(bar, x), weight, zero_f32()));
    }
    total = add(total, sum);
    before = add(before, sum_before);
  }
  return {static_cast<double>(reduce_add(total)), static_cast<double>(reduce_add(before))};
}

// Philox4x32-10 of 16 consecutive counters, one a lane: the words of tokens 4 i .. 4 i + 3.
bool noise_below(uint64_t seed, int32_t position, int64_t block, float limit, uint32_t* words) {
  constexpr int32_t kFirst[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  I32x16 c0 = set1(position);
  I32x16 c1 = add(load(kFirst), set1(static_cast<int32_t>(block * kLanes)));
  I32x16 c2 = zero_i32(), c3 = zero_i32();
  unroll<10>([&](auto) TRIMTAB_INLINE_LAMBDA {
    I32x16 high0, high1;
    const I32x16 low0 = multiply_wide(c0, 0xD2511F53u, &high0);
    const I32x16 low1 = multiply_wide(c2, 0xCD9E8D57u, &high1);
    c0 = bit_xor(bit_xor(high1, c1), set1(static_cast<int32_t>(key0)));
    c1 = low1;
    c2 = bit_xor(bit_xor(high0, c3), set1(static_cast<int32_t>(key1)));
    c3 = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  });
  const auto noise = [](I32x16 word) TRIMTAB_INLINE_LAMBDA { return to_f32(shift_right<8>(word)); };
  const F32x16 least = min(min(noise(c0), noise(c1)), min(noise(c2), noise(c3)));
  const I32x16 any = select(less(least, set1(limit)), set1(1), zero_i32());
  if (reduce_max(any) == 0) return false;
  int32_t lanes[4][kLanes];
  store(lanes[0], c0);
  store(lanes[1], c1);
  store(lanes[2], c2);
  store(lanes[3], c3);
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < 4; ++j) words[4 * i + j] = static_cast<uint32_t>(lanes[j][i]);
  return true;
}

}  // namespace

SamplingKernels sampling_kernels() {
  return {.scan = scan,
          .weights = weights,
          .mass = mass,
          .rough_mass = rough_mass,
          .noise_below = noise_below};
}

}  // namespace trimtab::TRIMTAB_ISA
