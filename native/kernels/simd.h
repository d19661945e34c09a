// A 16-lane vector vocabulary. Kernels are written once against it and compiled once for each ISA
// path; the build defines exactly one TRIMTAB_KERNELS_<ISA> for each translation unit of kernels/.
//
// Everything here and in the kernels lives in the path's own namespace, TRIMTAB_ISA, so that the
// linker can never take code compiled with one path's instructions for another's. For the same
// reason kernel sources use no standard library templates: <cstdint>, <cstddef>, <cstring> only.
//
//   F32x16, I32x16        sixteen float / int32 lanes; Mask16: one truth value a lane
//   load/store            unaligned; *_tail(p, count) touch only the first count lanes (0..16), the
//                         others read as zero; *_bf16, *_f16, *_s8 convert from and to memory
//   fma(a, b, c)          a * b + c, rounded once, on every path
//   max/min(a, b)         b where either is NaN, as in the x86 instructions
//   to_i32(x)             round half to even; out of range and NaN give an unspecified integer
//   multiply_wide(x, y)   unsigned 64-bit products: returns the low halves, *high gets the rest
//   to_bf16 (store_bf16)  round to nearest even, denormals kept, NaN stays NaN, on every path
//   reduce_*              a fixed tree: lanes i and i+8, then i+4, i+2, i+1, on every path
//
// Dot-product primitives of the weight formats (kernels.h, PackedMatrix): see each path's header.
//   bf16  kBf16Steps, Bf16Weights, load_bf16_weights, Bf16Pair, dot_bf16
//   int8  kInt8Steps, Int8Weights, load_int8_weights, Int8Pairs, broadcast_int8, dot_int8; sums
//         start at int8_start(activations); store_int8: 16 quantized activations; settled(sum)
//         keeps what follows a loop out of it: GCC otherwise copies every sum in every round
//   int4  Bytes64 of nibbles 0..15: load_bytes, low_nibbles, high_nibbles; Quad, broadcast_quad;
//         U4Sums of up to kU4Quads quads, start_u4(u4_start(activations)), dot_u4, total_u4
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/isa_namespace.h"

#if !defined(TRIMTAB_ISA)
#error "only sources in kernels/ may include this"
#endif

#define TRIMTAB_INLINE static inline __attribute__((always_inline))

// On lambdas that must vanish: [&](auto i) TRIMTAB_INLINE_LAMBDA { ... }
#define TRIMTAB_INLINE_LAMBDA __attribute__((always_inline))

namespace trimtab::TRIMTAB_ISA {

constexpr int kLanes = 16;

template <int N>
struct Index {
  constexpr operator int() const { return N; }
};

// function(Index<0>()), ..., function(Index<Count - 1>()), unrolled before the compiler decides
// what lives in registers: a loop over an array of vectors, unrolled later, leaves them in memory.
template <int Count, class Function>
TRIMTAB_INLINE void unroll(const Function& function) {
  if constexpr (Count > 0) {
    unroll<Count - 1>(function);
    function(Index<Count - 1>());
  }
}

// Into the first-level cache, and only into the second.
TRIMTAB_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
TRIMTAB_INLINE void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace trimtab::TRIMTAB_ISA

#if defined(TRIMTAB_KERNELS_AVX512)
#include "kernels/simd_avx512.h"
#elif defined(TRIMTAB_KERNELS_AVX2)
#include "kernels/simd_avx2.h"
#elif defined(TRIMTAB_KERNELS_NEON)
#include "kernels/simd_neon.h"
#else
#include "kernels/simd_portable.h"
#endif

#include "kernels/simd_math.h"
