// GEMM, packing and activation quantization of one ISA path.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace trimtab::TRIMTAB_ISA {

GemmKernels gemm_kernels();

}  // namespace trimtab::TRIMTAB_ISA
