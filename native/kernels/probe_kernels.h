// What a kernel path can do at best: streams of loads, and dot products in registers.
#pragma once

#include <cstdint>

#include "kernels/isa_namespace.h"

namespace trimtab {

enum class ProbeArithmetic : int32_t { f32 = 0, bf16 = 1, int8 = 2, int4 = 3 };

struct ProbeKernels {
  // Reads `bytes` (a multiple of 256) once, in four streams, with the widest loads. The result
  // keeps the reads alive.
  int32_t (*read)(const uint8_t* data, int64_t bytes);
  // Multiply-accumulates of one call of `compute` with `rounds` rounds.
  int64_t (*macs)(ProbeArithmetic kind, int64_t rounds);
  // Independent chains of the path's own dot products (simd.h) over operands in the first-level
  // cache: data is 4096 + 64 bytes of any finite values. The result keeps the work alive.
  float (*compute)(ProbeArithmetic kind, const uint8_t* data, int64_t rounds);
};

#if defined(TRIMTAB_ISA)
namespace TRIMTAB_ISA {
ProbeKernels probe_kernels();
}
#endif

}  // namespace trimtab
