// Packing of weights and preparation of activations; contracts in kernels.h.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace trimtab::TRIMTAB_ISA {

// A row or group whose largest magnitude is below this is zero: its scale would lose its precision
// to denormals, or its inverse overflow.
constexpr float kSmallestAbsmax = 0x1p-100f;

void pack(const PackedMatrix& w, uint8_t* data, float* scales, const float* source, int64_t panel0,
          int64_t panel1);

int64_t activation_bytes(WeightFormat format, int64_t padded_cols);

void prepare(const PackedMatrix& w, const float* x, int64_t x_stride, int64_t rows,
             const Activations& out, int64_t first_row);

// Sixteen floats from position k of a row of cols floats; zero from cols on.
TRIMTAB_INLINE F32x16 load_row(const float* row, int64_t k, int64_t cols) {
  if (k + kLanes <= cols) return load(row + k);
  return k < cols ? load_tail(row + k, static_cast<int>(cols - k)) : zero_f32();
}

// Largest magnitude of x[first, last) of a row of cols floats. Compared as integers, so that NaN
// is larger than infinity and infinity larger than any number.
TRIMTAB_INLINE float absmax(const float* row, int64_t first, int64_t last, int64_t cols) {
  I32x16 largest = zero_i32();
  const I32x16 magnitude = set1(0x7fffffff);
  for (int64_t k = first; k < last; k += kLanes) {
    largest = max(largest, bit_and(as_i32(load_row(row, k, cols)), magnitude));
  }
  return __builtin_bit_cast(float, reduce_max(largest));
}

}  // namespace trimtab::TRIMTAB_ISA
