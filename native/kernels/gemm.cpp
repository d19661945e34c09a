#include "kernels/gemm.h"

namespace trimtab::TRIMTAB_ISA {
GemmKernels gemm_kernels() { return {}; }
}  // namespace trimtab::TRIMTAB_ISA
