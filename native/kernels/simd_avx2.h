// The vocabulary of simd.h on AVX2, FMA and F16C: two 8-lane registers.
#pragma once

#include <immintrin.h>

namespace trimtab::TRIMTAB_ISA {

struct F32x16 {
  __m256 a, b;
};
struct I32x16 {
  __m256i a, b;
};
struct Mask16 {
  __m256 a, b;
};

TRIMTAB_INLINE __m256i tail_mask(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// ---- float
TRIMTAB_INLINE F32x16 zero_f32() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
TRIMTAB_INLINE F32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
TRIMTAB_INLINE F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
TRIMTAB_INLINE void store(float* p, F32x16 x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
TRIMTAB_INLINE F32x16 load_tail(const float* p, int count) {
  return {_mm256_maskload_ps(p, tail_mask(count)), _mm256_maskload_ps(p + 8, tail_mask(count - 8))};
}
TRIMTAB_INLINE void store_tail(float* p, F32x16 x, int count) {
  _mm256_maskstore_ps(p, tail_mask(count), x.a);
  _mm256_maskstore_ps(p + 8, tail_mask(count - 8), x.b);
}
TRIMTAB_INLINE F32x16 add(F32x16 x, F32x16 y) {
  return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
TRIMTAB_INLINE F32x16 sub(F32x16 x, F32x16 y) {
  return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
TRIMTAB_INLINE F32x16 mul(F32x16 x, F32x16 y) {
  return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
TRIMTAB_INLINE F32x16 div(F32x16 x, F32x16 y) {
  return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}
TRIMTAB_INLINE F32x16 fma(F32x16 x, F32x16 y, F32x16 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
TRIMTAB_INLINE F32x16 max(F32x16 x, F32x16 y) {
  return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}
TRIMTAB_INLINE F32x16 min(F32x16 x, F32x16 y) {
  return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)};
}
TRIMTAB_INLINE Mask16 less(F32x16 x, F32x16 y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}
TRIMTAB_INLINE F32x16 select(Mask16 m, F32x16 yes, F32x16 no) {
  return {_mm256_blendv_ps(no.a, yes.a, m.a), _mm256_blendv_ps(no.b, yes.b, m.b)};
}

// ---- int32
TRIMTAB_INLINE __m256i load_256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
TRIMTAB_INLINE void store_256(void* p, __m256i x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), x);
}
TRIMTAB_INLINE I32x16 zero_i32() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
TRIMTAB_INLINE I32x16 set1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
TRIMTAB_INLINE I32x16 load(const int32_t* p) { return {load_256(p), load_256(p + 8)}; }
TRIMTAB_INLINE void store(int32_t* p, I32x16 x) {
  store_256(p, x.a);
  store_256(p + 8, x.b);
}
TRIMTAB_INLINE I32x16 add(I32x16 x, I32x16 y) {
  return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}
TRIMTAB_INLINE I32x16 sub(I32x16 x, I32x16 y) {
  return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)};
}
TRIMTAB_INLINE I32x16 max(I32x16 x, I32x16 y) {
  return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)};
}
TRIMTAB_INLINE I32x16 bit_and(I32x16 x, I32x16 y) {
  return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)};
}
TRIMTAB_INLINE I32x16 bit_or(I32x16 x, I32x16 y) {
  return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)};
}
TRIMTAB_INLINE I32x16 bit_xor(I32x16 x, I32x16 y) {
  return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)};
}
TRIMTAB_INLINE __m256i multiply_halves(__m256i x, __m256i y, __m256i* high) {
  const __m256i even = _mm256_mul_epu32(x, y);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), y);
  *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}
TRIMTAB_INLINE I32x16 multiply_wide(I32x16 x, uint32_t y, I32x16* high) {
  const __m256i factor = _mm256_set1_epi32(static_cast<int32_t>(y));
  return {multiply_halves(x.a, factor, &high->a), multiply_halves(x.b, factor, &high->b)};
}
template <int N>
TRIMTAB_INLINE I32x16 shift_left(I32x16 x) {
  return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)};
}
template <int N>
TRIMTAB_INLINE I32x16 shift_right(I32x16 x) {  // zeros come in
  return {_mm256_srli_epi32(x.a, N), _mm256_srli_epi32(x.b, N)};
}
template <int N>
TRIMTAB_INLINE I32x16 shift_right_sign(I32x16 x) {
  return {_mm256_srai_epi32(x.a, N), _mm256_srai_epi32(x.b, N)};
}
TRIMTAB_INLINE Mask16 less(I32x16 x, I32x16 y) {
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(y.a, x.a)),
          _mm256_castsi256_ps(_mm256_cmpgt_epi32(y.b, x.b))};
}
TRIMTAB_INLINE I32x16 select(Mask16 m, I32x16 yes, I32x16 no) {
  return {_mm256_blendv_epi8(no.a, yes.a, _mm256_castps_si256(m.a)),
          _mm256_blendv_epi8(no.b, yes.b, _mm256_castps_si256(m.b))};
}

// ---- conversions
TRIMTAB_INLINE I32x16 as_i32(F32x16 x) {
  return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)};
}
TRIMTAB_INLINE F32x16 as_f32(I32x16 x) {
  return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)};
}
TRIMTAB_INLINE I32x16 to_i32(F32x16 x) {
  return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)};
}
TRIMTAB_INLINE F32x16 to_f32(I32x16 x) {
  return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)};
}

TRIMTAB_INLINE __m128i load_128(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
TRIMTAB_INLINE void store_128(void* p, __m128i x) { _mm_storeu_si128(static_cast<__m128i*>(p), x); }
TRIMTAB_INLINE I32x16 load_u16(const uint16_t* p) {
  return {_mm256_cvtepu16_epi32(load_128(p)), _mm256_cvtepu16_epi32(load_128(p + 8))};
}
TRIMTAB_INLINE void store_u16(uint16_t* p, I32x16 x) {  // the low halves
  const __m256i mask = _mm256_set1_epi32(0xffff);
  __m256i packed = _mm256_packus_epi32(_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask));
  store_256(p, _mm256_permute4x64_epi64(packed, 0b11011000));
}
TRIMTAB_INLINE F32x16 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 8))};
}
TRIMTAB_INLINE void store_f16(uint16_t* p, F32x16 x) {
  store_128(p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  store_128(p + 8, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
TRIMTAB_INLINE I32x16 load_s8(const int8_t* p) {  // widened by the load unit
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8)))};
}
TRIMTAB_INLINE void store_s8(int8_t* p, I32x16 x) {  // saturates
  __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0b11011000);
  store_128(p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

// ---- reductions
TRIMTAB_INLINE float reduce_add(F32x16 x) {
  __m256 y = _mm256_add_ps(x.a, x.b);
  __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  z = _mm_add_ps(z, _mm_movehl_ps(z, z));
  return _mm_cvtss_f32(_mm_add_ss(z, _mm_shuffle_ps(z, z, 1)));
}
TRIMTAB_INLINE float reduce_max(F32x16 x) {
  __m256 y = _mm256_max_ps(x.a, x.b);
  __m128 z = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  z = _mm_max_ps(z, _mm_movehl_ps(z, z));
  return _mm_cvtss_f32(_mm_max_ss(z, _mm_shuffle_ps(z, z, 1)));
}

// ---- dot products
// 64 bytes: one k-unit of a panel. Activations come as the 4 bytes that face a unit.
struct Bytes64 {
  __m256i a, b;
};
TRIMTAB_INLINE Bytes64 load_bytes(const uint8_t* p) { return {load_256(p), load_256(p + 32)}; }
TRIMTAB_INLINE void store_bytes(uint8_t* p, Bytes64 x) {
  store_256(p, x.a);
  store_256(p + 32, x.b);
}
TRIMTAB_INLINE Bytes64 low_nibbles(Bytes64 x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
TRIMTAB_INLINE Bytes64 high_nibbles(Bytes64 x) {
  return low_nibbles({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)});
}

// bf16: two steps a pair of k (even, then odd); activations are floats that were rounded to bf16.
constexpr int kBf16Steps = 2;
using Bf16Weights = F32x16;
struct Bf16Pair {
  __m256 v;
};
TRIMTAB_INLINE Bf16Weights load_bf16_weights(const uint8_t* p, int step) {
  __m256i x = load_256(p), y = load_256(p + 32);
  if (step == 0) {
    x = _mm256_slli_epi32(x, 16);
    y = _mm256_slli_epi32(y, 16);
  } else {
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    x = _mm256_and_si256(x, mask);
    y = _mm256_and_si256(y, mask);
  }
  return {_mm256_castsi256_ps(x), _mm256_castsi256_ps(y)};
}
TRIMTAB_INLINE Bf16Pair broadcast_bf16(const uint8_t* p) {
  return {_mm256_broadcast_ss(reinterpret_cast<const float*>(p))};
}
TRIMTAB_INLINE F32x16 dot_bf16(F32x16 sum, Bf16Weights w, Bf16Pair a) {
  sum = {_mm256_fmadd_ps(w.a, a.v, sum.a), _mm256_fmadd_ps(w.b, a.v, sum.b)};
  __asm__ volatile("" : "+x"(sum.a), "+x"(sum.b));
  return sum;
}

// int8: two steps a quad, its even k and its odd k, widened to int16; activations are stored that
// way. Weights keep their offset: sums start at -128 * (sum of the activations). (maddubs would
// need the absolute weights, a sign for each activation and one more multiply.)
constexpr int kInt8Steps = 2;
using Int8Weights = Bytes64;
struct Int8Pairs {
  __m256i v;
};
TRIMTAB_INLINE Int8Weights load_int8_weights(const uint8_t* p, int step) {
  const Bytes64 x = load_bytes(p);
  if (step != 0) return {_mm256_srli_epi16(x.a, 8), _mm256_srli_epi16(x.b, 8)};
  const __m256i even = _mm256_set1_epi16(255);
  return {_mm256_and_si256(x.a, even), _mm256_and_si256(x.b, even)};
}
TRIMTAB_INLINE Int8Pairs broadcast_int8(const uint8_t* p) {
  int32_t pair;
  std::memcpy(&pair, p, 4);
  return {_mm256_set1_epi32(pair)};
}
TRIMTAB_INLINE I32x16 dot_int8(I32x16 sum, Int8Weights w, Int8Pairs q) {
  sum = {_mm256_add_epi32(sum.a, _mm256_madd_epi16(w.a, q.v)),
         _mm256_add_epi32(sum.b, _mm256_madd_epi16(w.b, q.v))};
  __asm__ volatile("" : "+x"(sum.a), "+x"(sum.b));
  return sum;
}
TRIMTAB_INLINE int32_t int8_start(I32x16 q) {
  const __m256i sums = _mm256_add_epi32(q.a, q.b);
  __m128i quad = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  quad = _mm_hadd_epi32(quad, quad);
  quad = _mm_hadd_epi32(quad, quad);
  return static_cast<int32_t>(-128u * static_cast<uint32_t>(_mm_cvtsi128_si32(quad)));
}
TRIMTAB_INLINE I32x16 settled(I32x16 sum) { return sum; }
TRIMTAB_INLINE void store_int8(uint8_t* row, int64_t k, I32x16 q) {
  const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,  //
                                         0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
  __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(q.a, q.b), 0b11011000);
  store_256(row + 2 * k, _mm256_shuffle_epi8(words, order));
}

// int4: weights 0..15, activations s8, sums of int16: of k % 4 = 0, 1 in even lanes, of 2, 3 in odd
// ones. They start at -8 times the sum of the activations that face them. So after kU4Quads quads
// they are sums of (weight - 8) * activation, at most 16 * 2 * 8 * 127 = 32512, and what wraps
// around on the way does not matter.
constexpr int kU4Quads = 16;
struct Quad {
  __m256i v;
};
TRIMTAB_INLINE Quad broadcast_quad(const uint8_t* p) {
  int32_t quad;
  std::memcpy(&quad, p, 4);
  return {_mm256_set1_epi32(quad)};
}
struct U4Sums {
  __m256i a, b;
};
// The start for a chunk whose activations, k modulo 16, add up to q.
TRIMTAB_INLINE int32_t u4_start(I32x16 q) {
  __m256i sums = _mm256_add_epi32(q.a, q.b);
  __m128i quad = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  quad = _mm_slli_epi32(_mm_hadd_epi32(quad, quad), 3);
  const uint32_t even = static_cast<uint32_t>(_mm_cvtsi128_si32(quad));
  const uint32_t odd = static_cast<uint32_t>(_mm_extract_epi32(quad, 1));
  return static_cast<int32_t>((0u - odd) << 16 | ((0u - even) & 0xffffu));
}
TRIMTAB_INLINE U4Sums start_u4(int32_t start) {
  return {_mm256_set1_epi32(start), _mm256_set1_epi32(start)};
}
TRIMTAB_INLINE U4Sums dot_u4(U4Sums sum, Bytes64 w, Quad q) {
  return {_mm256_add_epi16(sum.a, _mm256_maddubs_epi16(w.a, q.v)),
          _mm256_add_epi16(sum.b, _mm256_maddubs_epi16(w.b, q.v))};
}
TRIMTAB_INLINE I32x16 total_u4(U4Sums sum) {
  const __m256i ones = _mm256_set1_epi16(1);
  return {_mm256_madd_epi16(sum.a, ones), _mm256_madd_epi16(sum.b, ones)};
}

}  // namespace trimtab::TRIMTAB_ISA
