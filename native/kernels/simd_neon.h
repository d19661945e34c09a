// The vocabulary of simd.h on AArch64 Advanced SIMD with dot product: four 4-lane registers.
#pragma once

#include <arm_neon.h>

namespace trimtab::TRIMTAB_ISA {

struct F32x16 {
  float32x4_t a, b, c, d;
};
struct I32x16 {
  int32x4_t a, b, c, d;
};
struct Mask16 {
  uint32x4_t a, b, c, d;
};

// ---- float
TRIMTAB_INLINE F32x16 set1(float x) {
  const float32x4_t v = vdupq_n_f32(x);
  return {v, v, v, v};
}
TRIMTAB_INLINE F32x16 zero_f32() { return set1(0.0f); }
TRIMTAB_INLINE F32x16 load(const float* p) {
  return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}
TRIMTAB_INLINE void store(float* p, F32x16 x) {
  vst1q_f32(p, x.a);
  vst1q_f32(p + 4, x.b);
  vst1q_f32(p + 8, x.c);
  vst1q_f32(p + 12, x.d);
}
// There are no masked loads and stores: a tail goes through memory.
TRIMTAB_INLINE F32x16 load_tail(const float* p, int count) {
  if (count == kLanes) return load(p);
  float lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(count) * sizeof(float));
  return load(lanes);
}
TRIMTAB_INLINE void store_tail(float* p, F32x16 x, int count) {
  if (count == kLanes) return store(p, x);
  float lanes[kLanes];
  store(lanes, x);
  std::memcpy(p, lanes, static_cast<size_t>(count) * sizeof(float));
}
TRIMTAB_INLINE F32x16 add(F32x16 x, F32x16 y) {
  return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b), vaddq_f32(x.c, y.c), vaddq_f32(x.d, y.d)};
}
TRIMTAB_INLINE F32x16 sub(F32x16 x, F32x16 y) {
  return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b), vsubq_f32(x.c, y.c), vsubq_f32(x.d, y.d)};
}
TRIMTAB_INLINE F32x16 mul(F32x16 x, F32x16 y) {
  return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b), vmulq_f32(x.c, y.c), vmulq_f32(x.d, y.d)};
}
TRIMTAB_INLINE F32x16 div(F32x16 x, F32x16 y) {
  return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b), vdivq_f32(x.c, y.c), vdivq_f32(x.d, y.d)};
}
TRIMTAB_INLINE F32x16 fma(F32x16 x, F32x16 y, F32x16 z) {
  return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c),
          vfmaq_f32(z.d, x.d, y.d)};
}
TRIMTAB_INLINE Mask16 less(F32x16 x, F32x16 y) {
  return {vcltq_f32(x.a, y.a), vcltq_f32(x.b, y.b), vcltq_f32(x.c, y.c), vcltq_f32(x.d, y.d)};
}
TRIMTAB_INLINE F32x16 select(Mask16 m, F32x16 yes, F32x16 no) {
  return {vbslq_f32(m.a, yes.a, no.a), vbslq_f32(m.b, yes.b, no.b), vbslq_f32(m.c, yes.c, no.c),
          vbslq_f32(m.d, yes.d, no.d)};
}
// fmax and fmin differ from the contract in NaN and in the sign of zero.
TRIMTAB_INLINE F32x16 max(F32x16 x, F32x16 y) { return select(less(y, x), x, y); }
TRIMTAB_INLINE F32x16 min(F32x16 x, F32x16 y) { return select(less(x, y), x, y); }

// ---- int32
TRIMTAB_INLINE I32x16 set1(int32_t x) {
  const int32x4_t v = vdupq_n_s32(x);
  return {v, v, v, v};
}
TRIMTAB_INLINE I32x16 zero_i32() { return set1(int32_t{0}); }
TRIMTAB_INLINE I32x16 load(const int32_t* p) {
  return {vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)};
}
TRIMTAB_INLINE void store(int32_t* p, I32x16 x) {
  vst1q_s32(p, x.a);
  vst1q_s32(p + 4, x.b);
  vst1q_s32(p + 8, x.c);
  vst1q_s32(p + 12, x.d);
}
TRIMTAB_INLINE I32x16 add(I32x16 x, I32x16 y) {
  return {vaddq_s32(x.a, y.a), vaddq_s32(x.b, y.b), vaddq_s32(x.c, y.c), vaddq_s32(x.d, y.d)};
}
TRIMTAB_INLINE I32x16 sub(I32x16 x, I32x16 y) {
  return {vsubq_s32(x.a, y.a), vsubq_s32(x.b, y.b), vsubq_s32(x.c, y.c), vsubq_s32(x.d, y.d)};
}
TRIMTAB_INLINE I32x16 max(I32x16 x, I32x16 y) {
  return {vmaxq_s32(x.a, y.a), vmaxq_s32(x.b, y.b), vmaxq_s32(x.c, y.c), vmaxq_s32(x.d, y.d)};
}
TRIMTAB_INLINE I32x16 bit_and(I32x16 x, I32x16 y) {
  return {vandq_s32(x.a, y.a), vandq_s32(x.b, y.b), vandq_s32(x.c, y.c), vandq_s32(x.d, y.d)};
}
TRIMTAB_INLINE I32x16 bit_or(I32x16 x, I32x16 y) {
  return {vorrq_s32(x.a, y.a), vorrq_s32(x.b, y.b), vorrq_s32(x.c, y.c), vorrq_s32(x.d, y.d)};
}
TRIMTAB_INLINE I32x16 bit_xor(I32x16 x, I32x16 y) {
  return {veorq_s32(x.a, y.a), veorq_s32(x.b, y.b), veorq_s32(x.c, y.c), veorq_s32(x.d, y.d)};
}
TRIMTAB_INLINE int32x4_t multiply_halves(int32x4_t x, uint32_t y, int32x4_t* high) {
  const uint32x4_t u = vreinterpretq_u32_s32(x), factor = vdupq_n_u32(y);
  const uint32x4_t a = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(u), vget_low_u32(factor)));
  const uint32x4_t b = vreinterpretq_u32_u64(vmull_high_u32(u, factor));
  *high = vreinterpretq_s32_u32(vuzp2q_u32(a, b));
  return vreinterpretq_s32_u32(vuzp1q_u32(a, b));
}
TRIMTAB_INLINE I32x16 multiply_wide(I32x16 x, uint32_t y, I32x16* high) {
  return {multiply_halves(x.a, y, &high->a), multiply_halves(x.b, y, &high->b),
          multiply_halves(x.c, y, &high->c), multiply_halves(x.d, y, &high->d)};
}
template <int N>
TRIMTAB_INLINE I32x16 shift_left(I32x16 x) {
  return {vshlq_n_s32(x.a, N), vshlq_n_s32(x.b, N), vshlq_n_s32(x.c, N), vshlq_n_s32(x.d, N)};
}
template <int N>
TRIMTAB_INLINE int32x4_t shift_right_zeros(int32x4_t x) {
  return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(x), N));
}
template <int N>
TRIMTAB_INLINE I32x16 shift_right(I32x16 x) {  // zeros come in
  return {shift_right_zeros<N>(x.a), shift_right_zeros<N>(x.b), shift_right_zeros<N>(x.c),
          shift_right_zeros<N>(x.d)};
}
template <int N>
TRIMTAB_INLINE I32x16 shift_right_sign(I32x16 x) {
  return {vshrq_n_s32(x.a, N), vshrq_n_s32(x.b, N), vshrq_n_s32(x.c, N), vshrq_n_s32(x.d, N)};
}
TRIMTAB_INLINE Mask16 less(I32x16 x, I32x16 y) {
  return {vcltq_s32(x.a, y.a), vcltq_s32(x.b, y.b), vcltq_s32(x.c, y.c), vcltq_s32(x.d, y.d)};
}
TRIMTAB_INLINE I32x16 select(Mask16 m, I32x16 yes, I32x16 no) {
  return {vbslq_s32(m.a, yes.a, no.a), vbslq_s32(m.b, yes.b, no.b), vbslq_s32(m.c, yes.c, no.c),
          vbslq_s32(m.d, yes.d, no.d)};
}

// ---- conversions
TRIMTAB_INLINE I32x16 as_i32(F32x16 x) {
  return {vreinterpretq_s32_f32(x.a), vreinterpretq_s32_f32(x.b), vreinterpretq_s32_f32(x.c),
          vreinterpretq_s32_f32(x.d)};
}
TRIMTAB_INLINE F32x16 as_f32(I32x16 x) {
  return {vreinterpretq_f32_s32(x.a), vreinterpretq_f32_s32(x.b), vreinterpretq_f32_s32(x.c),
          vreinterpretq_f32_s32(x.d)};
}
TRIMTAB_INLINE I32x16 to_i32(F32x16 x) {
  return {vcvtnq_s32_f32(x.a), vcvtnq_s32_f32(x.b), vcvtnq_s32_f32(x.c), vcvtnq_s32_f32(x.d)};
}
TRIMTAB_INLINE F32x16 to_f32(I32x16 x) {
  return {vcvtq_f32_s32(x.a), vcvtq_f32_s32(x.b), vcvtq_f32_s32(x.c), vcvtq_f32_s32(x.d)};
}

TRIMTAB_INLINE I32x16 widen(int16x8_t x, int16x8_t y) {
  return {vmovl_s16(vget_low_s16(x)), vmovl_high_s16(x), vmovl_s16(vget_low_s16(y)),
          vmovl_high_s16(y)};
}
TRIMTAB_INLINE int32x4_t widen_u16(const uint16_t* p) {
  return vreinterpretq_s32_u32(vmovl_u16(vld1_u16(p)));
}
TRIMTAB_INLINE I32x16 load_u16(const uint16_t* p) {
  return {widen_u16(p), widen_u16(p + 4), widen_u16(p + 8), widen_u16(p + 12)};
}
TRIMTAB_INLINE uint16x8_t low_halves(int32x4_t x, int32x4_t y) {
  return vuzp1q_u16(vreinterpretq_u16_s32(x), vreinterpretq_u16_s32(y));
}
TRIMTAB_INLINE void store_u16(uint16_t* p, I32x16 x) {  // the low halves
  vst1q_u16(p, low_halves(x.a, x.b));
  vst1q_u16(p + 8, low_halves(x.c, x.d));
}
TRIMTAB_INLINE float32x4_t widen_f16(const uint16_t* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
TRIMTAB_INLINE F32x16 load_f16(const uint16_t* p) {
  return {widen_f16(p), widen_f16(p + 4), widen_f16(p + 8), widen_f16(p + 12)};
}
TRIMTAB_INLINE void store_f16(uint16_t* p, F32x16 x) {
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x.a)));
  vst1_u16(p + 4, vreinterpret_u16_f16(vcvt_f16_f32(x.b)));
  vst1_u16(p + 8, vreinterpret_u16_f16(vcvt_f16_f32(x.c)));
  vst1_u16(p + 12, vreinterpret_u16_f16(vcvt_f16_f32(x.d)));
}
TRIMTAB_INLINE I32x16 load_s8(const int8_t* p) {
  const int8x16_t x = vld1q_s8(p);
  return widen(vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x));
}
TRIMTAB_INLINE void store_s8(int8_t* p, I32x16 x) {  // saturates
  const int16x8_t low = vqmovn_high_s32(vqmovn_s32(x.a), x.b);
  const int16x8_t high = vqmovn_high_s32(vqmovn_s32(x.c), x.d);
  vst1q_s8(p, vqmovn_high_s16(vqmovn_s16(low), high));
}

// ---- reductions
TRIMTAB_INLINE float reduce_add(F32x16 x) {
  const float32x4_t y = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
  const float32x2_t z = vadd_f32(vget_low_f32(y), vget_high_f32(y));
  return vget_lane_f32(z, 0) + vget_lane_f32(z, 1);
}
TRIMTAB_INLINE float larger(float x, float y) { return x > y ? x : y; }
TRIMTAB_INLINE float reduce_max(F32x16 x) {
  const F32x16 y = max({x.a, x.b, x.a, x.b}, {x.c, x.d, x.c, x.d});
  const F32x16 z = max({y.a, y.a, y.a, y.a}, {y.b, y.b, y.b, y.b});
  return larger(larger(vgetq_lane_f32(z.a, 0), vgetq_lane_f32(z.a, 2)),
                larger(vgetq_lane_f32(z.a, 1), vgetq_lane_f32(z.a, 3)));
}

// ---- dot products
// 64 bytes: one k-unit of a panel. Activations are one lane that faces the whole unit: a plain
// 4-byte load, and products "by element", which broadcast it for nothing.
struct Bytes64 {
  uint8x16_t a, b, c, d;
};
TRIMTAB_INLINE Bytes64 load_bytes(const uint8_t* p) {
  return {vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)};
}
TRIMTAB_INLINE void store_bytes(uint8_t* p, Bytes64 x) {
  vst1q_u8(p, x.a);
  vst1q_u8(p + 16, x.b);
  vst1q_u8(p + 32, x.c);
  vst1q_u8(p + 48, x.d);
}
TRIMTAB_INLINE Bytes64 low_nibbles(Bytes64 x) {
  const uint8x16_t mask = vdupq_n_u8(15);
  return {vandq_u8(x.a, mask), vandq_u8(x.b, mask), vandq_u8(x.c, mask), vandq_u8(x.d, mask)};
}
TRIMTAB_INLINE Bytes64 high_nibbles(Bytes64 x) {
  return {vshrq_n_u8(x.a, 4), vshrq_n_u8(x.b, 4), vshrq_n_u8(x.c, 4), vshrq_n_u8(x.d, 4)};
}
TRIMTAB_INLINE uint32_t load_word(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return word;
}

// bf16: two steps a pair of k (even, then odd); activations are floats that were rounded to bf16.
constexpr int kBf16Steps = 2;
using Bf16Weights = F32x16;
struct Bf16Pair {
  float32x2_t v;
};
TRIMTAB_INLINE Bf16Weights load_bf16_weights(const uint8_t* p, int step) {
  const I32x16 pairs = load(reinterpret_cast<const int32_t*>(p));
  return as_f32(step == 0 ? shift_left<16>(pairs)
                          : bit_and(pairs, set1(static_cast<int32_t>(0xffff0000u))));
}
TRIMTAB_INLINE Bf16Pair broadcast_bf16(const uint8_t* p) { return {vcreate_f32(load_word(p))}; }
TRIMTAB_INLINE F32x16 dot_bf16(F32x16 sum, Bf16Weights w, Bf16Pair x) {
  return {vfmaq_lane_f32(sum.a, w.a, x.v, 0), vfmaq_lane_f32(sum.b, w.b, x.v, 0),
          vfmaq_lane_f32(sum.c, w.c, x.v, 0), vfmaq_lane_f32(sum.d, w.d, x.v, 0)};
}

// int8: s8 x s8, so the weights lose their offset when they are loaded.
constexpr int kInt8Steps = 1;
struct Int8Weights {
  int8x16_t a, b, c, d;
};
struct Quad {
  int8x8_t v;
};
TRIMTAB_INLINE Quad broadcast_quad(const uint8_t* p) { return {vcreate_s8(load_word(p))}; }
TRIMTAB_INLINE Int8Weights as_int8(Bytes64 x) {
  return {vreinterpretq_s8_u8(x.a), vreinterpretq_s8_u8(x.b), vreinterpretq_s8_u8(x.c),
          vreinterpretq_s8_u8(x.d)};
}
TRIMTAB_INLINE Int8Weights load_int8_weights(const uint8_t* p, int) {
  const uint8x16_t offset = vdupq_n_u8(128);
  const Bytes64 x = load_bytes(p);
  return as_int8(
      {veorq_u8(x.a, offset), veorq_u8(x.b, offset), veorq_u8(x.c, offset), veorq_u8(x.d, offset)});
}
using Int8Pairs = Quad;
TRIMTAB_INLINE Int8Pairs broadcast_int8(const uint8_t* p) { return broadcast_quad(p); }
TRIMTAB_INLINE int32_t int8_start(I32x16) { return 0; }
TRIMTAB_INLINE void store_int8(uint8_t* row, int64_t k, I32x16 q) {
  store_s8(reinterpret_cast<int8_t*>(row) + k, q);
}
TRIMTAB_INLINE I32x16 dot_int8(I32x16 sum, Int8Weights w, Quad x) {
  return {vdotq_lane_s32(sum.a, w.a, x.v, 0), vdotq_lane_s32(sum.b, w.b, x.v, 0),
          vdotq_lane_s32(sum.c, w.c, x.v, 0), vdotq_lane_s32(sum.d, w.d, x.v, 0)};
}

TRIMTAB_INLINE I32x16 settled(I32x16 sum) { return sum; }

// int4: weights 0..15, as good as s8; sums start at -8 * (sum of the activations).
constexpr int kU4Quads = 32;
using U4Sums = I32x16;
TRIMTAB_INLINE int32_t u4_start(I32x16 q) {
  return -8 * vaddvq_s32(vaddq_s32(vaddq_s32(q.a, q.b), vaddq_s32(q.c, q.d)));
}
TRIMTAB_INLINE U4Sums start_u4(int32_t start) { return set1(start); }
TRIMTAB_INLINE U4Sums dot_u4(U4Sums sum, Bytes64 w, Quad x) { return dot_int8(sum, as_int8(w), x); }
TRIMTAB_INLINE I32x16 total_u4(U4Sums sum) { return sum; }

}  // namespace trimtab::TRIMTAB_ISA
