#include "kernels/probe_kernels.h"

#include "kernels/simd.h"

namespace trimtab::TRIMTAB_ISA {
namespace {

// Enough chains to hide the latency of a dot product, few enough to stay in registers.
#if defined(TRIMTAB_KERNELS_AVX512)
constexpr int kChains = 12;
#else
constexpr int kChains = 6;
#endif
constexpr int64_t kUnits = 64;  // operands of 64 bytes that one round walks through

// Four streams, as a matrix product of one row reads its panels.
int32_t read(const uint8_t* data, int64_t bytes) {
  const int64_t quarter = bytes / 4;
  I32x16 a = zero_i32(), b = a, c = a, d = a;
  for (int64_t i = 0; i < quarter; i += 64) {
    const uint8_t* p = data + i;
    prefetch(p + 1024);
    prefetch(p + quarter + 1024);
    prefetch(p + 2 * quarter + 1024);
    prefetch(p + 3 * quarter + 1024);
    a = bit_xor(a, load(reinterpret_cast<const int32_t*>(p)));
    b = bit_xor(b, load(reinterpret_cast<const int32_t*>(p + quarter)));
    c = bit_xor(c, load(reinterpret_cast<const int32_t*>(p + 2 * quarter)));
    d = bit_xor(d, load(reinterpret_cast<const int32_t*>(p + 3 * quarter)));
  }
  return static_cast<int32_t>(reduce_add(to_f32(bit_xor(bit_xor(a, b), bit_xor(c, d)))));
}

int64_t macs_of_unit(ProbeArithmetic kind) {
  switch (kind) {
    case ProbeArithmetic::f32:
      return 16;
    case ProbeArithmetic::bf16:
      return 32;
    default:
      return 64;
  }
}

int64_t macs(ProbeArithmetic kind, int64_t rounds) {
  return rounds * kUnits * kChains * macs_of_unit(kind);
}

template <class Sum, int kCount>
Sum total(const Sum (&sums)[kCount]) {
  Sum result = sums[0];
  for (int i = 1; i < kCount; ++i) result = add(result, sums[i]);
  return result;
}

float compute_f32(const uint8_t* data, int64_t rounds) {
  F32x16 sums[kChains];
  unroll<kChains>([&](auto i) TRIMTAB_INLINE_LAMBDA { sums[i] = zero_f32(); });
  const float* values = reinterpret_cast<const float*>(data);
  for (int64_t round = 0; round < rounds; ++round) {
    for (int64_t unit = 0; unit < kUnits; ++unit) {
      F32x16 w = load(values + 16 * unit);
      unroll<kChains>([&](auto i) TRIMTAB_INLINE_LAMBDA {
        sums[i] = fma(w, set1(values[kChains * unit + i]), sums[i]);
      });
    }
  }
  return reduce_add(total(sums));
}

float compute_bf16(const uint8_t* data, int64_t rounds) {
  F32x16 sums[kChains];
  unroll<kChains>([&](auto i) TRIMTAB_INLINE_LAMBDA { sums[i] = zero_f32(); });
  for (int64_t round = 0; round < rounds; ++round) {
    for (int64_t unit = 0; unit < kUnits; ++unit) {
      unroll<kBf16Steps>([&](auto step) TRIMTAB_INLINE_LAMBDA {
        Bf16Weights w = load_bf16_weights(data + 64 * unit, step);
        const uint8_t* activations = data + 4 * kChains * (kBf16Steps * unit + step);
        unroll<kChains>([&](auto i) TRIMTAB_INLINE_LAMBDA {
          sums[i] = dot_bf16(sums[i], w, broadcast_bf16(activations + 4 * i));
        });
      });
    }
  }
  return reduce_add(total(sums));
}

float compute_int8(const uint8_t* data, int64_t rounds) {
  I32x16 sums[kChains];
  unroll<kChains>([&](auto i) TRIMTAB_INLINE_LAMBDA { sums[i] = zero_i32(); });
  for (int64_t round = 0; round < rounds; ++round) {
    for (int64_t unit = 0; unit < kUnits; ++unit) {
      unroll<kInt8Steps>([&](auto step) TRIMTAB_INLINE_LAMBDA {
        Int8Weights w = load_int8_weights(data + 64 * unit, step);
        const uint8_t* activations = data + 4 * kChains * (kInt8Steps * unit + step);
        unroll<kChains>([&](auto i) TRIMTAB_INLINE_LAMBDA {
          sums[i] = dot_int8(sums[i], w, broadcast_int8(activations + 4 * i));
        });
      });
    }
  }
  return reduce_add(to_f32(total(sums)));
}

// Groups of 64 inputs, unpacked from memory; what follows a group's integer sum is not counted.
float compute_int4(const uint8_t* data, int64_t rounds) {
  constexpr int kQuads = 16;
  I32x16 totals[kChains];
  unroll<kChains>([&](auto i) TRIMTAB_INLINE_LAMBDA { totals[i] = zero_i32(); });
  for (int64_t round = 0; round < rounds; ++round) {
    for (int64_t unit = 0; unit < kUnits; unit += kQuads) {
      U4Sums sums[kChains];
      unroll<kChains>([&](auto i) TRIMTAB_INLINE_LAMBDA { sums[i] = start_u4(0); });
#pragma GCC unroll 1
      for (int quad = 0; quad < kQuads; ++quad) {
        Bytes64 w = load_bytes(data + 64 * (unit + quad));
        unroll<kChains>([&](auto i) TRIMTAB_INLINE_LAMBDA {
          sums[i] = dot_u4(sums[i], w, broadcast_quad(data + 4 * (kChains * (unit + quad) + i)));
        });
      }
      unroll<kChains>([&](auto i)
                          TRIMTAB_INLINE_LAMBDA { totals[i] = add(totals[i], total_u4(sums[i])); });
    }
  }
  return reduce_add(to_f32(total(totals)));
}

float compute(ProbeArithmetic kind, const uint8_t* data, int64_t rounds) {
  switch (kind) {
    case ProbeArithmetic::f32:
      return compute_f32(data, rounds);
    case ProbeArithmetic::bf16:
      return compute_bf16(data, rounds);
    case ProbeArithmetic::int8:
      return compute_int8(data, rounds);
    default:
      return compute_int4(data, rounds);
  }
}

}  // namespace

ProbeKernels probe_kernels() { return {read, macs, compute}; }

}  // namespace trimtab::TRIMTAB_ISA
