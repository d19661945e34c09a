// AVX-512 on SIMDe, for tests on machines without it: the intrinsics that simd_avx512.h uses and
// SIMDe 0.7 lacks, in terms of AVX2. Build with -DTRIMTAB_EMULATE_AVX512=ON.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <cstdint>
#include <cstring>

namespace trimtab::TRIMTAB_ISA {

struct Halves {
  __m256i low, high;
};
TRIMTAB_INLINE Halves split(__m512i x) { return __builtin_bit_cast(Halves, x); }
TRIMTAB_INLINE __m512i join(__m256i low, __m256i high) {
  return __builtin_bit_cast(__m512i, Halves{low, high});
}
struct FloatHalves {
  __m256 low, high;
};
TRIMTAB_INLINE FloatHalves split(__m512 x) { return __builtin_bit_cast(FloatHalves, x); }
TRIMTAB_INLINE __m512 join(__m256 low, __m256 high) {
  return __builtin_bit_cast(__m512, FloatHalves{low, high});
}

#undef _mm512_fmadd_ps  // SIMDe's may round twice
TRIMTAB_INLINE __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  FloatHalves x = split(a), y = split(b), z = split(c);
  return join(_mm256_fmadd_ps(x.low, y.low, z.low), _mm256_fmadd_ps(x.high, y.high, z.high));
}
TRIMTAB_INLINE __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const float* p) {
  float lanes[16] = {};
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) lanes[i] = p[i];
  }
  return _mm512_loadu_ps(lanes);
}
TRIMTAB_INLINE void _mm512_mask_storeu_ps(float* p, __mmask16 mask, __m512 x) {
  float lanes[16];
  _mm512_storeu_ps(lanes, x);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) p[i] = lanes[i];
  }
}
TRIMTAB_INLINE __m512i _mm512_srai_epi32(__m512i x, int count) {
  Halves h = split(x);
  return join(_mm256_srai_epi32(h.low, count), _mm256_srai_epi32(h.high, count));
}
TRIMTAB_INLINE __m512i _mm512_cvtps_epi32(__m512 x) {
  FloatHalves h = split(x);
  return join(_mm256_cvtps_epi32(h.low), _mm256_cvtps_epi32(h.high));
}
TRIMTAB_INLINE __m512 _mm512_cvtepi32_ps(__m512i x) {
  Halves h = split(x);
  return join(_mm256_cvtepi32_ps(h.low), _mm256_cvtepi32_ps(h.high));
}
TRIMTAB_INLINE __m512i _mm512_cvtepu16_epi32(__m256i x) {
  return join(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)),
              _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1)));
}
TRIMTAB_INLINE __m256i _mm512_cvtepi32_epi16(__m512i x) {
  uint32_t wide[16];
  uint16_t narrow[16];
  std::memcpy(wide, &x, sizeof wide);
  for (int i = 0; i < 16; ++i) narrow[i] = static_cast<uint16_t>(wide[i]);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(narrow));
}
TRIMTAB_INLINE __m512i _mm512_cvtepi8_epi32(__m128i x) {
  return join(_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)));
}
TRIMTAB_INLINE __m512 _mm512_cvtph_ps(__m256i x) {
  return join(_mm256_cvtph_ps(_mm256_castsi256_si128(x)),
              _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
}
TRIMTAB_INLINE __m256i _mm512_cvtps_ph(__m512 x, int) {
  FloatHalves h = split(x);
  __m128i low = _mm256_cvtps_ph(h.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m128i high = _mm256_cvtps_ph(h.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

}  // namespace trimtab::TRIMTAB_ISA
