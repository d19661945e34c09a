// What follows from the vocabulary alone, the same on every path: bf16, s8, exp, tanh, gates.
#pragma once

namespace trimtab::TRIMTAB_ISA {

TRIMTAB_INLINE F32x16 abs(F32x16 x) { return as_f32(bit_and(as_i32(x), set1(0x7fffffff))); }

// ---- bf16 in memory
TRIMTAB_INLINE F32x16 load_bf16(const uint16_t* p) { return as_f32(shift_left<16>(load_u16(p))); }

// The bf16 nearest to x (ties to even), in the low halves of the lanes.
TRIMTAB_INLINE I32x16 to_bf16(F32x16 x) {
  I32x16 bits = as_i32(x);
  I32x16 odd = bit_and(shift_right<16>(bits), set1(1));
  I32x16 rounded = shift_right<16>(add(bits, add(odd, set1(0x7fff))));
  I32x16 quiet = bit_or(shift_right<16>(bits), set1(0x40));
  return select(less(set1(0x7f800000), bit_and(bits, set1(0x7fffffff))), quiet, rounded);
}
TRIMTAB_INLINE F32x16 round_to_bf16(F32x16 x) { return as_f32(shift_left<16>(to_bf16(x))); }
TRIMTAB_INLINE void store_bf16(uint16_t* p, F32x16 x) { store_u16(p, to_bf16(x)); }

TRIMTAB_INLINE F32x16 load_bf16_tail(const uint16_t* p, int count) {
  uint16_t lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(count) * 2);
  return load_bf16(lanes);
}
TRIMTAB_INLINE void store_bf16_tail(uint16_t* p, F32x16 x, int count) {
  uint16_t lanes[kLanes];
  store_bf16(lanes, x);
  std::memcpy(p, lanes, static_cast<size_t>(count) * 2);
}
TRIMTAB_INLINE void store_s8_tail(int8_t* p, I32x16 x, int count) {
  int8_t lanes[kLanes];
  store_s8(lanes, x);
  std::memcpy(p, lanes, static_cast<size_t>(count));
}
TRIMTAB_INLINE int32_t reduce_add(I32x16 x) {
  int32_t lanes[kLanes], sum = 0;
  store(lanes, x);
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}
TRIMTAB_INLINE int32_t reduce_max(I32x16 x) {
  int32_t lanes[kLanes];
  store(lanes, x);
  int32_t best = lanes[0];
  for (int i = 1; i < kLanes; ++i) best = lanes[i] > best ? lanes[i] : best;
  return best;
}

// e^x to about 1 ulp. Below -87.33 (where e^x leaves the normal floats) exactly 0, above 88.72
// infinity, NaN stays NaN.
TRIMTAB_INLINE F32x16 exp(F32x16 x) {
  const F32x16 lowest = set1(-87.33654f);
  F32x16 y = min(set1(89.0f), max(lowest, x));
  I32x16 n = to_i32(mul(y, set1(1.44269504f)));
  F32x16 whole = to_f32(n);
  F32x16 r = fma(whole, set1(-0.693359375f), y);  // ln 2, high part: the product is exact
  r = fma(whole, set1(2.12194440e-4f), r);        // minus the low part
  F32x16 p = set1(1.9875691500e-4f);              // Cephes expf
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(mul(r, r), p, add(r, set1(1.0f)));
  // 2^n in two factors: n = 128 has no float of its own
  I32x16 half = shift_right_sign<1>(n);
  F32x16 scale = as_f32(shift_left<23>(add(half, set1(127))));
  F32x16 rest = as_f32(shift_left<23>(add(sub(n, half), set1(127))));
  return select(less(x, lowest), zero_f32(), mul(mul(p, scale), rest));
}

// 1 / (1 + e^-x)
TRIMTAB_INLINE F32x16 sigmoid(F32x16 x) {
  return div(set1(1.0f), add(set1(1.0f), exp(sub(zero_f32(), x))));
}

TRIMTAB_INLINE F32x16 tanh(F32x16 x) {
  F32x16 magnitude = abs(x);
  F32x16 e = exp(add(magnitude, magnitude));
  F32x16 large = sub(set1(1.0f), div(set1(2.0f), add(e, set1(1.0f))));
  I32x16 sign = bit_and(as_i32(x), set1(static_cast<int32_t>(0x80000000u)));
  large = as_f32(bit_or(as_i32(large), sign));
  F32x16 z = mul(x, x);
  F32x16 p = set1(-5.70498872745e-3f);  // Cephes tanhf
  p = fma(p, z, set1(2.06390887954e-2f));
  p = fma(p, z, set1(-5.37397155531e-2f));
  p = fma(p, z, set1(1.33314422036e-1f));
  p = fma(p, z, set1(-3.33332819422e-1f));
  F32x16 small = fma(mul(p, z), x, x);
  return select(less(magnitude, set1(0.625f)), small, large);
}

TRIMTAB_INLINE F32x16 silu(F32x16 x) { return div(x, add(set1(1.0f), exp(sub(zero_f32(), x)))); }

// x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2 = x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))
TRIMTAB_INLINE F32x16 gelu_tanh(F32x16 x) {
  F32x16 inner = fma(mul(mul(x, x), x), set1(0.044715f), x);
  return div(x, add(set1(1.0f), exp(mul(inner, set1(-1.5957691216f)))));
}

}  // namespace trimtab::TRIMTAB_ISA
