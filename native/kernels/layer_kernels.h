// Kernels of a layer besides GEMM: norms, rope, KV writes, attention.
#pragma once

#include "kernels/isa_namespace.h"

namespace trimtab {

struct LayerKernels {};

#if defined(TRIMTAB_ISA)
namespace TRIMTAB_ISA {
inline LayerKernels layer_kernels() { return {}; }
}  // namespace TRIMTAB_ISA
#endif

}  // namespace trimtab
