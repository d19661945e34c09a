// The kernel table of one ISA path.
#include "kernels/gemm.h"
#include "kernels/kernels.h"

namespace trimtab::TRIMTAB_ISA {

#if defined(TRIMTAB_KERNELS_AVX512)
constexpr const char* kName = "avx512";
#elif defined(TRIMTAB_KERNELS_AVX2)
constexpr const char* kName = "avx2";
#else
constexpr const char* kName = "portable";
#endif

const KernelTable& kernel_table() {
  static const KernelTable table = {kName, gemm_kernels(), layer_kernels(), probe_kernels()};
  return table;
}

}  // namespace trimtab::TRIMTAB_ISA
