// The vocabulary of simd.h on AVX-512 (F, BW, DQ, VL, VNNI, BF16).
#pragma once

#if defined(TRIMTAB_EMULATE_AVX512)
#include "kernels/simd_avx512_emulation.h"
#else
#include <immintrin.h>
#endif

namespace trimtab::TRIMTAB_ISA {

struct F32x16 {
  __m512 v;
};
struct I32x16 {
  __m512i v;
};
struct Mask16 {
  __mmask16 v;
};

TRIMTAB_INLINE __mmask16 tail_mask(int count) {
  return static_cast<__mmask16>((uint32_t{1} << count) - 1);
}

// ---- float
TRIMTAB_INLINE F32x16 zero_f32() { return {_mm512_setzero_ps()}; }
TRIMTAB_INLINE F32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
TRIMTAB_INLINE F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
TRIMTAB_INLINE void store(float* p, F32x16 x) { _mm512_storeu_ps(p, x.v); }
TRIMTAB_INLINE F32x16 load_tail(const float* p, int count) {
  return {_mm512_maskz_loadu_ps(tail_mask(count), p)};
}
TRIMTAB_INLINE void store_tail(float* p, F32x16 x, int count) {
  _mm512_mask_storeu_ps(p, tail_mask(count), x.v);
}
TRIMTAB_INLINE F32x16 add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
TRIMTAB_INLINE F32x16 sub(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
TRIMTAB_INLINE F32x16 mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
TRIMTAB_INLINE F32x16 div(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
TRIMTAB_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
TRIMTAB_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
TRIMTAB_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
TRIMTAB_INLINE Mask16 less(F32x16 a, F32x16 b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)};
}
TRIMTAB_INLINE F32x16 select(Mask16 m, F32x16 yes, F32x16 no) {
  return {_mm512_mask_blend_ps(m.v, no.v, yes.v)};
}

// ---- int32
TRIMTAB_INLINE I32x16 zero_i32() { return {_mm512_setzero_si512()}; }
TRIMTAB_INLINE I32x16 set1(int32_t x) { return {_mm512_set1_epi32(x)}; }
TRIMTAB_INLINE I32x16 load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
TRIMTAB_INLINE void store(int32_t* p, I32x16 x) { _mm512_storeu_si512(p, x.v); }
TRIMTAB_INLINE I32x16 add(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
TRIMTAB_INLINE I32x16 sub(I32x16 a, I32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
TRIMTAB_INLINE I32x16 max(I32x16 a, I32x16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
TRIMTAB_INLINE I32x16 bit_and(I32x16 a, I32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
TRIMTAB_INLINE I32x16 bit_or(I32x16 a, I32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }
TRIMTAB_INLINE I32x16 bit_xor(I32x16 a, I32x16 b) { return {_mm512_xor_si512(a.v, b.v)}; }
TRIMTAB_INLINE I32x16 multiply_wide(I32x16 x, uint32_t y, I32x16* high) {
  const __m512i factor = _mm512_set1_epi32(static_cast<int32_t>(y));
  const __m512i even = _mm512_mul_epu32(x.v, factor);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x.v, 32), factor);
  *high = {_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd)};
  return {_mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32))};
}
template <int N>
TRIMTAB_INLINE I32x16 shift_left(I32x16 x) {
  return {_mm512_slli_epi32(x.v, N)};
}
template <int N>
TRIMTAB_INLINE I32x16 shift_right(I32x16 x) {  // zeros come in
  return {_mm512_srli_epi32(x.v, N)};
}
template <int N>
TRIMTAB_INLINE I32x16 shift_right_sign(I32x16 x) {
  return {_mm512_srai_epi32(x.v, N)};
}
TRIMTAB_INLINE Mask16 less(I32x16 a, I32x16 b) { return {_mm512_cmpgt_epi32_mask(b.v, a.v)}; }
TRIMTAB_INLINE I32x16 select(Mask16 m, I32x16 yes, I32x16 no) {
  return {_mm512_mask_blend_epi32(m.v, no.v, yes.v)};
}

// ---- conversions
TRIMTAB_INLINE I32x16 as_i32(F32x16 x) { return {_mm512_castps_si512(x.v)}; }
TRIMTAB_INLINE F32x16 as_f32(I32x16 x) { return {_mm512_castsi512_ps(x.v)}; }
TRIMTAB_INLINE I32x16 to_i32(F32x16 x) { return {_mm512_cvtps_epi32(x.v)}; }
TRIMTAB_INLINE F32x16 to_f32(I32x16 x) { return {_mm512_cvtepi32_ps(x.v)}; }

TRIMTAB_INLINE I32x16 load_u16(const uint16_t* p) {
  return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
TRIMTAB_INLINE void store_u16(uint16_t* p, I32x16 x) {  // the low halves
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x.v));
}
TRIMTAB_INLINE F32x16 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
TRIMTAB_INLINE void store_f16(uint16_t* p, F32x16 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
TRIMTAB_INLINE I32x16 load_s8(const int8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
TRIMTAB_INLINE void store_s8(int8_t* p, I32x16 x) {  // saturates
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(x.v));
}

// ---- reductions
TRIMTAB_INLINE __m256 low_half(__m512 x) { return _mm512_castps512_ps256(x); }
TRIMTAB_INLINE __m256 high_half(__m512 x) {
  return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1));
}
TRIMTAB_INLINE float reduce_add(F32x16 x) {
  __m256 y = _mm256_add_ps(low_half(x.v), high_half(x.v));
  __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  z = _mm_add_ps(z, _mm_movehl_ps(z, z));
  return _mm_cvtss_f32(_mm_add_ss(z, _mm_shuffle_ps(z, z, 1)));
}
TRIMTAB_INLINE float reduce_max(F32x16 x) {
  __m256 y = _mm256_max_ps(low_half(x.v), high_half(x.v));
  __m128 z = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  z = _mm_max_ps(z, _mm_movehl_ps(z, z));
  return _mm_cvtss_f32(_mm_max_ss(z, _mm_shuffle_ps(z, z, 1)));
}

// ---- dot products
// 64 bytes: one k-unit of a panel. Activations come as the 4 bytes that face a unit.
struct Bytes64 {
  __m512i v;
};
TRIMTAB_INLINE Bytes64 load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
TRIMTAB_INLINE void store_bytes(uint8_t* p, Bytes64 x) { _mm512_storeu_si512(p, x.v); }
TRIMTAB_INLINE Bytes64 low_nibbles(Bytes64 x) {
  return {_mm512_and_si512(x.v, _mm512_set1_epi8(15))};
}
TRIMTAB_INLINE Bytes64 high_nibbles(Bytes64 x) {
  return {_mm512_and_si512(_mm512_srli_epi16(x.v, 4), _mm512_set1_epi8(15))};
}

// bf16: one step a pair of k; activations are pairs of bf16.
constexpr int kBf16Steps = 1;
struct Bf16Weights {
  __m512i v;
};
struct Bf16Pair {
  __m512i v;
};
TRIMTAB_INLINE Bf16Weights load_bf16_weights(const uint8_t* p, int) {
  return {_mm512_loadu_si512(p)};
}
TRIMTAB_INLINE Bf16Pair broadcast_bf16(const uint8_t* p) {
  int32_t pair;
  std::memcpy(&pair, p, 4);
  return {_mm512_set1_epi32(pair)};
}
TRIMTAB_INLINE F32x16 dot_bf16(F32x16 sum, Bf16Weights w, Bf16Pair a) {
  return {_mm512_dpbf16_ps(sum.v, __builtin_bit_cast(__m512bh, w.v),
                           __builtin_bit_cast(__m512bh, a.v))};
}

// int8 and int4: weights u8, activations s8.
struct Quad {
  __m512i v;
};
TRIMTAB_INLINE Quad broadcast_quad(const uint8_t* p) {
  int32_t quad;
  std::memcpy(&quad, p, 4);
  return {_mm512_set1_epi32(quad)};
}
TRIMTAB_INLINE uint32_t sum_of_lanes(I32x16 q) {
  uint32_t lanes[kLanes], sum = 0;
  store(reinterpret_cast<int32_t*>(lanes), q);
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}
TRIMTAB_INLINE I32x16 settled(I32x16 sum) {
#if !defined(TRIMTAB_EMULATE_AVX512)
  __asm__("" : "+v"(sum.v));
#endif
  return sum;
}

constexpr int kInt8Steps = 1;
using Int8Weights = Bytes64;
using Int8Pairs = Quad;
TRIMTAB_INLINE Int8Weights load_int8_weights(const uint8_t* p, int) { return load_bytes(p); }
TRIMTAB_INLINE Int8Pairs broadcast_int8(const uint8_t* p) { return broadcast_quad(p); }
TRIMTAB_INLINE I32x16 dot_int8(I32x16 sum, Int8Weights w, Int8Pairs a) {
  return {_mm512_dpbusd_epi32(sum.v, w.v, a.v)};
}
TRIMTAB_INLINE int32_t int8_start(I32x16 q) {
  return static_cast<int32_t>(-128u * sum_of_lanes(q));
}
TRIMTAB_INLINE void store_int8(uint8_t* row, int64_t k, I32x16 q) {
  store_s8(reinterpret_cast<int8_t*>(row) + k, q);
}

constexpr int kU4Quads = 32;
using U4Sums = I32x16;
TRIMTAB_INLINE int32_t u4_start(I32x16 q) { return static_cast<int32_t>(-8u * sum_of_lanes(q)); }
TRIMTAB_INLINE U4Sums start_u4(int32_t start) { return set1(start); }
TRIMTAB_INLINE U4Sums dot_u4(U4Sums sum, Bytes64 w, Quad a) { return dot_int8(sum, w, a); }
TRIMTAB_INLINE I32x16 total_u4(U4Sums sum) { return settled(sum); }

}  // namespace trimtab::TRIMTAB_ISA
