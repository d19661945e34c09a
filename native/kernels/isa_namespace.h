// TRIMTAB_ISA: the namespace of the path that this kernel source is compiled for; undefined outside
// of kernels/. The build defines exactly one TRIMTAB_KERNELS_<ISA> for each kernel object.
#pragma once

#if defined(TRIMTAB_KERNELS_AVX512)
#define TRIMTAB_ISA isa_avx512
#elif defined(TRIMTAB_KERNELS_AVX2)
#define TRIMTAB_ISA isa_avx2
#elif defined(TRIMTAB_KERNELS_NEON)
#define TRIMTAB_ISA isa_neon
#elif defined(TRIMTAB_KERNELS_PORTABLE)
#define TRIMTAB_ISA isa_portable
#endif
