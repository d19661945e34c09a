// The kernel table of one ISA path.
#include "kernels/gemm.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace trimtab::TRIMTAB_ISA {

#if defined(TRIMTAB_KERNELS_AVX512)
constexpr const char* kName = "avx512";
#elif defined(TRIMTAB_KERNELS_AVX2)
constexpr const char* kName = "avx2";
#elif defined(TRIMTAB_KERNELS_NEON)
constexpr const char* kName = "neon";
#else
constexpr const char* kName = "portable";
#endif

namespace {

F32x16 apply(VectorFunction function, F32x16 x) {
  switch (function) {
    case VectorFunction::exp:
      return exp(x);
    case VectorFunction::tanh:
      return tanh(x);
    case VectorFunction::sigmoid:
      return sigmoid(x);
    case VectorFunction::silu:
      return silu(x);
    case VectorFunction::gelu_tanh:
      return gelu_tanh(x);
    case VectorFunction::round_bf16:
      return round_to_bf16(x);
    case VectorFunction::round_f16: {
      uint16_t half[kLanes];
      store_f16(half, x);
      return load_f16(half);
    }
  }
  return x;
}

void evaluate(VectorFunction function, const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    int lanes = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
    store_tail(y + i, apply(function, load_tail(x + i, lanes)), lanes);
  }
}

}  // namespace

const KernelTable& kernel_table() {
  static const KernelTable table = {
      kName, gemm_kernels(), layer_kernels(), sampling_kernels(), probe_kernels(), evaluate};
  return table;
}

}  // namespace trimtab::TRIMTAB_ISA
