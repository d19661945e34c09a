// The vocabulary of simd.h in the vector extensions of GCC and Clang, for any processor.
#pragma once

namespace trimtab::TRIMTAB_ISA {

typedef float FloatVector __attribute__((vector_size(64)));
typedef int32_t IntVector __attribute__((vector_size(64)));
typedef uint32_t UnsignedVector __attribute__((vector_size(64)));

struct F32x16 {
  FloatVector v;
};
struct I32x16 {
  IntVector v;
};
struct Mask16 {
  IntVector v;  // 0 or -1
};

// ---- float
TRIMTAB_INLINE F32x16 set1(float x) { return {x - FloatVector{}}; }
TRIMTAB_INLINE F32x16 zero_f32() { return {FloatVector{}}; }
TRIMTAB_INLINE F32x16 load(const float* p) {
  F32x16 x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
TRIMTAB_INLINE void store(float* p, F32x16 x) { std::memcpy(p, &x, sizeof x); }
TRIMTAB_INLINE F32x16 load_tail(const float* p, int count) {
  F32x16 x = zero_f32();
  std::memcpy(&x, p, static_cast<size_t>(count) * sizeof(float));
  return x;
}
TRIMTAB_INLINE void store_tail(float* p, F32x16 x, int count) {
  std::memcpy(p, &x, static_cast<size_t>(count) * sizeof(float));
}
TRIMTAB_INLINE F32x16 add(F32x16 a, F32x16 b) { return {a.v + b.v}; }
TRIMTAB_INLINE F32x16 sub(F32x16 a, F32x16 b) { return {a.v - b.v}; }
TRIMTAB_INLINE F32x16 mul(F32x16 a, F32x16 b) { return {a.v * b.v}; }
TRIMTAB_INLINE F32x16 div(F32x16 a, F32x16 b) { return {a.v / b.v}; }
TRIMTAB_INLINE F32x16 max(F32x16 a, F32x16 b) { return {a.v > b.v ? a.v : b.v}; }
TRIMTAB_INLINE F32x16 min(F32x16 a, F32x16 b) { return {a.v < b.v ? a.v : b.v}; }
TRIMTAB_INLINE Mask16 less(F32x16 a, F32x16 b) { return {a.v < b.v}; }
TRIMTAB_INLINE F32x16 select(Mask16 m, F32x16 yes, F32x16 no) { return {m.v ? yes.v : no.v}; }

#if defined(__FP_FAST_FMAF)
TRIMTAB_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  F32x16 r = {};
  for (int i = 0; i < kLanes; ++i) r.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
  return r;
}
#else
typedef float FloatQuarter __attribute__((vector_size(16)));
typedef double DoubleQuarter __attribute__((vector_size(32)));
typedef int64_t LongQuarter __attribute__((vector_size(32)));

// The product is exact in double; the sum is rounded to odd (its error, from two-sum, decides the
// last bit), so that rounding it once more to float gives the correctly rounded result.
TRIMTAB_INLINE FloatQuarter fma_quarter(FloatQuarter a, FloatQuarter b, FloatQuarter c) {
  DoubleQuarter product =
      __builtin_convertvector(a, DoubleQuarter) * __builtin_convertvector(b, DoubleQuarter);
  DoubleQuarter addend = __builtin_convertvector(c, DoubleQuarter);
  DoubleQuarter sum = product + addend;
  DoubleQuarter part = sum - product;
  DoubleQuarter error = (product - (sum - part)) + (addend - part);
  LongQuarter bits = (LongQuarter)sum;
  LongQuarter inexact = (error > 0.0) | (error < 0.0);
  LongQuarter toward_zero = (error > 0.0) ^ (sum > 0.0);  // -1: the exact sum is nearer to zero
  LongQuarter even = (bits & 1) - 1;                      // -1 when the last bit is 0
  bits += inexact & even & (toward_zero | 1);
  return __builtin_convertvector((DoubleQuarter)bits, FloatQuarter);
}
TRIMTAB_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  FloatQuarter x[4], y[4], z[4];
  std::memcpy(x, &a, sizeof a);
  std::memcpy(y, &b, sizeof b);
  std::memcpy(z, &c, sizeof c);
  for (int i = 0; i < 4; ++i) z[i] = fma_quarter(x[i], y[i], z[i]);
  std::memcpy(&c, z, sizeof c);
  return c;
}
#endif

// ---- int32 (wrapping)
TRIMTAB_INLINE I32x16 zero_i32() { return {IntVector{}}; }
TRIMTAB_INLINE I32x16 set1(int32_t x) { return {x + IntVector{}}; }
TRIMTAB_INLINE I32x16 load(const int32_t* p) {
  I32x16 x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
TRIMTAB_INLINE void store(int32_t* p, I32x16 x) { std::memcpy(p, &x, sizeof x); }
TRIMTAB_INLINE I32x16 add(I32x16 a, I32x16 b) {
  return {(IntVector)((UnsignedVector)a.v + (UnsignedVector)b.v)};
}
TRIMTAB_INLINE I32x16 sub(I32x16 a, I32x16 b) {
  return {(IntVector)((UnsignedVector)a.v - (UnsignedVector)b.v)};
}
TRIMTAB_INLINE I32x16 max(I32x16 a, I32x16 b) { return {a.v > b.v ? a.v : b.v}; }
TRIMTAB_INLINE I32x16 bit_and(I32x16 a, I32x16 b) { return {a.v & b.v}; }
TRIMTAB_INLINE I32x16 bit_or(I32x16 a, I32x16 b) { return {a.v | b.v}; }
TRIMTAB_INLINE I32x16 bit_xor(I32x16 a, I32x16 b) { return {a.v ^ b.v}; }
TRIMTAB_INLINE I32x16 multiply_wide(I32x16 x, uint32_t y, I32x16* high) {
  I32x16 low;
  for (int i = 0; i < kLanes; ++i) {
    const uint64_t product = uint64_t{static_cast<uint32_t>(x.v[i])} * y;
    low.v[i] = static_cast<int32_t>(product);
    high->v[i] = static_cast<int32_t>(product >> 32);
  }
  return low;
}
template <int N>
TRIMTAB_INLINE I32x16 shift_left(I32x16 x) {
  return {(IntVector)((UnsignedVector)x.v << N)};
}
template <int N>
TRIMTAB_INLINE I32x16 shift_right(I32x16 x) {  // zeros come in
  return {(IntVector)((UnsignedVector)x.v >> N)};
}
template <int N>
TRIMTAB_INLINE I32x16 shift_right_sign(I32x16 x) {
  return {x.v >> N};
}
TRIMTAB_INLINE Mask16 less(I32x16 a, I32x16 b) { return {a.v < b.v}; }
TRIMTAB_INLINE I32x16 select(Mask16 m, I32x16 yes, I32x16 no) { return {m.v ? yes.v : no.v}; }

// ---- conversions
TRIMTAB_INLINE I32x16 as_i32(F32x16 x) { return {(IntVector)x.v}; }
TRIMTAB_INLINE F32x16 as_f32(I32x16 x) { return {(FloatVector)x.v}; }
TRIMTAB_INLINE I32x16 to_i32(F32x16 x) {
  I32x16 r = {};
  for (int i = 0; i < kLanes; ++i) r.v[i] = static_cast<int32_t>(__builtin_lrintf(x.v[i]));
  return r;
}
TRIMTAB_INLINE F32x16 to_f32(I32x16 x) { return {__builtin_convertvector(x.v, FloatVector)}; }

TRIMTAB_INLINE I32x16 load_u16(const uint16_t* p) {
  I32x16 r = {};
  for (int i = 0; i < kLanes; ++i) r.v[i] = p[i];
  return r;
}
TRIMTAB_INLINE void store_u16(uint16_t* p, I32x16 x) {  // the low halves
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<uint16_t>(x.v[i]);
}

TRIMTAB_INLINE float f16_to_f32(uint16_t half) {
  uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, bits = half & 0x7fff;
  if (bits >= 0x7c00) {  // infinity, NaN
    bits = 0x7f800000u | (bits & 0x3ff) << 13;
  } else if (bits >= 0x400) {
    bits = (bits << 13) + (112u << 23);
  } else {
    bits = __builtin_bit_cast(uint32_t, static_cast<float>(bits) * 0x1p-24f);
  }
  return __builtin_bit_cast(float, bits | sign);
}
TRIMTAB_INLINE uint16_t f32_to_f16(float x) {
  uint32_t bits = __builtin_bit_cast(uint32_t, x);
  uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);   // NaN
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to infinity
  if (magnitude < 0x38800000) {  // denormal half: the addition rounds to a multiple of 2^-24
    float sum = __builtin_bit_cast(float, magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (__builtin_bit_cast(uint32_t, sum) - 0x3f000000));
  }
  magnitude += 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((magnitude - (112u << 23)) >> 13));
}
TRIMTAB_INLINE F32x16 load_f16(const uint16_t* p) {
  F32x16 r = {};
  for (int i = 0; i < kLanes; ++i) r.v[i] = f16_to_f32(p[i]);
  return r;
}
TRIMTAB_INLINE void store_f16(uint16_t* p, F32x16 x) {
  for (int i = 0; i < kLanes; ++i) p[i] = f32_to_f16(x.v[i]);
}
TRIMTAB_INLINE I32x16 load_s8(const int8_t* p) {
  I32x16 r = {};
  for (int i = 0; i < kLanes; ++i) r.v[i] = p[i];
  return r;
}
TRIMTAB_INLINE void store_s8(int8_t* p, I32x16 x) {  // saturates
  for (int i = 0; i < kLanes; ++i) {
    int32_t value = x.v[i];
    p[i] = static_cast<int8_t>(value > 127 ? 127 : value < -128 ? -128 : value);
  }
}

// ---- reductions
TRIMTAB_INLINE float reduce_add(F32x16 x) {
  float lanes[16];
  store(lanes, x);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}
TRIMTAB_INLINE float reduce_max(F32x16 x) {
  float lanes[16];
  store(lanes, x);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) {
      lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
    }
  }
  return lanes[0];
}

// ---- dot products
// 64 bytes: one k-unit of a panel. Activations come as the 4 bytes that face a unit.
struct Bytes64 {
  UnsignedVector v;
};
TRIMTAB_INLINE Bytes64 load_bytes(const uint8_t* p) {
  Bytes64 x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
TRIMTAB_INLINE void store_bytes(uint8_t* p, Bytes64 x) { std::memcpy(p, &x, sizeof x); }
TRIMTAB_INLINE Bytes64 low_nibbles(Bytes64 x) { return {x.v & 0x0f0f0f0fu}; }
TRIMTAB_INLINE Bytes64 high_nibbles(Bytes64 x) { return {x.v >> 4 & 0x0f0f0f0fu}; }

// bf16: two steps a pair of k (even, then odd); activations are floats that were rounded to bf16.
constexpr int kBf16Steps = 2;
using Bf16Weights = F32x16;
using Bf16Pair = F32x16;
TRIMTAB_INLINE Bf16Weights load_bf16_weights(const uint8_t* p, int step) {
  UnsignedVector pairs = load_bytes(p).v;
  return {(FloatVector)(step == 0 ? pairs << 16 : pairs & 0xffff0000u)};
}
TRIMTAB_INLINE Bf16Pair broadcast_bf16(const uint8_t* p) {
  float value;
  std::memcpy(&value, p, 4);
  return set1(value);
}
TRIMTAB_INLINE F32x16 dot_bf16(F32x16 sum, Bf16Weights w, Bf16Pair a) { return fma(w, a, sum); }

// int8 and int4: the four bytes of a lane, one after the other.
constexpr int kInt8Steps = 1;
struct Quad {
  int32_t k[4];
};
TRIMTAB_INLINE Quad broadcast_quad(const uint8_t* p) {
  int8_t bytes[4];
  std::memcpy(bytes, p, 4);
  return {{bytes[0], bytes[1], bytes[2], bytes[3]}};
}
struct Int8Weights {
  IntVector v;
};
using Int8Pairs = Quad;
TRIMTAB_INLINE Int8Pairs broadcast_int8(const uint8_t* p) { return broadcast_quad(p); }
TRIMTAB_INLINE int32_t int8_start(I32x16) { return 0; }
TRIMTAB_INLINE void store_int8(uint8_t* row, int64_t k, I32x16 q) {
  store_s8(reinterpret_cast<int8_t*>(row) + k, q);
}
TRIMTAB_INLINE Int8Weights load_int8_weights(const uint8_t* p, int) {
  return {(IntVector)(load_bytes(p).v ^ 0x80808080u)};
}
TRIMTAB_INLINE I32x16 dot_int8(I32x16 sum, Int8Weights w, Quad a) {
  UnsignedVector bits = (UnsignedVector)w.v;
  return {sum.v + ((IntVector)(bits << 24) >> 24) * a.k[0] +
          ((IntVector)(bits << 16) >> 24) * a.k[1] + ((IntVector)(bits << 8) >> 24) * a.k[2] +
          (w.v >> 24) * a.k[3]};
}

TRIMTAB_INLINE I32x16 settled(I32x16 sum) { return sum; }

// int4: weights 0..15, activations s8; sums start at -8 * (sum of the activations).
constexpr int kU4Quads = 32;
using U4Sums = I32x16;
TRIMTAB_INLINE int32_t u4_start(I32x16 q) {
  uint32_t sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += static_cast<uint32_t>(q.v[i]);
  return static_cast<int32_t>(-8u * sum);
}
TRIMTAB_INLINE U4Sums start_u4(int32_t start) { return set1(start); }
TRIMTAB_INLINE U4Sums dot_u4(U4Sums sum, Bytes64 w, Quad a) {
  return {sum.v + (IntVector)(w.v & 15) * a.k[0] + (IntVector)(w.v >> 8 & 15) * a.k[1] +
          (IntVector)(w.v >> 16 & 15) * a.k[2] + (IntVector)(w.v >> 24) * a.k[3]};
}
TRIMTAB_INLINE I32x16 total_u4(U4Sums sum) { return sum; }

}  // namespace trimtab::TRIMTAB_ISA
