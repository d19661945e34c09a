#include "core/isa.h"

#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace trimtab {

namespace isa_portable {
const KernelTable& kernel_table();
}
#if defined(TRIMTAB_HAVE_NEON)
namespace isa_neon {
const KernelTable& kernel_table();
}
#endif
#if defined(TRIMTAB_HAVE_AVX2)
namespace isa_avx2 {
const KernelTable& kernel_table();
}
#endif
#if defined(TRIMTAB_HAVE_AVX512)
namespace isa_avx512 {
const KernelTable& kernel_table();
}
#endif

namespace {

constexpr Isa kIsas[] = {Isa::avx512, Isa::avx2, Isa::neon, Isa::portable};  // best first

struct Feature {
  const char* name;
  bool present;
};

#if defined(__x86_64__)
struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // zeros where unsupported
  return r;
}

// Register state that the operating system saves (XCR0).
uint64_t saved_state() {
  if (!(cpuid(1, 0).ecx >> 27 & 1)) return 0;  // no OSXSAVE
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

std::vector<Feature> avx2_features() {
  Registers basic = cpuid(1, 0), extended = cpuid(7, 0);
  return {{"AVX2", (extended.ebx >> 5 & 1) != 0},
          {"FMA", (basic.ecx >> 12 & 1) != 0},
          {"F16C", (basic.ecx >> 29 & 1) != 0},
          {"operating system support for AVX state", (saved_state() & 0x6) == 0x6}};
}

#if !defined(TRIMTAB_EMULATE_AVX512)
std::vector<Feature> avx512_features() {
  Registers extended = cpuid(7, 0), more = cpuid(7, 1);
  std::vector<Feature> features = avx2_features();
  features.pop_back();  // the wider state below includes it
  features.insert(features.end(),
                  {{"AVX512F", (extended.ebx >> 16 & 1) != 0},
                   {"AVX512DQ", (extended.ebx >> 17 & 1) != 0},
                   {"AVX512BW", (extended.ebx >> 30 & 1) != 0},
                   {"AVX512VL", (extended.ebx >> 31 & 1) != 0},
                   {"AVX512VNNI", (extended.ecx >> 11 & 1) != 0},
                   {"AVX512BF16", (more.eax >> 5 & 1) != 0},
                   {"operating system support for AVX-512 state", (saved_state() & 0xe6) == 0xe6}});
  return features;
}
#endif

std::vector<Feature> needed_features(Isa isa) {
  if (isa == Isa::portable) return {};
#if defined(TRIMTAB_EMULATE_AVX512)
  return avx2_features();
#else
  return isa == Isa::avx512 ? avx512_features() : avx2_features();
#endif
}

// Names are the kernel's own, in capitals. Armv8.1's atomics stand for all of Armv8.2 that the
// compiler may use beside dot products.
#elif defined(__aarch64__) && defined(__linux__)
std::vector<Feature> needed_features(Isa isa) {
  if (isa == Isa::portable) return {};
  const unsigned long bits = getauxval(AT_HWCAP);
  return {{"ATOMICS", (bits & HWCAP_ATOMICS) != 0}, {"ASIMDDP", (bits & HWCAP_ASIMDDP) != 0}};
}
#else
std::vector<Feature> needed_features(Isa) { return {}; }
#endif

using Table = const KernelTable& (*)();

// Null where the path is not in this build.
Table table_of(Isa isa) {
  switch (isa) {
#if defined(TRIMTAB_HAVE_AVX512)
    case Isa::avx512:
      return isa_avx512::kernel_table;
#endif
#if defined(TRIMTAB_HAVE_AVX2)
    case Isa::avx2:
      return isa_avx2::kernel_table;
#endif
#if defined(TRIMTAB_HAVE_NEON)
    case Isa::neon:
      return isa_neon::kernel_table;
#endif
    case Isa::portable:
      return isa_portable::kernel_table;
    default:
      return nullptr;
  }
}

std::string join(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::neon:
      return "neon";
    case Isa::portable:
      return "portable";
  }
  return "";
}

Isa isa_from_name(const std::string& name) {
  for (Isa isa : kIsas) {
    if (name == isa_name(isa)) return isa;
  }
  throw std::invalid_argument("unknown kernel path '" + name +
                              "': must be one of avx512, avx2, neon, portable");
}

std::vector<std::string> missing_features(Isa isa) {
  if (table_of(isa) == nullptr) return {"a build for this processor"};
  std::vector<std::string> missing;
  for (const Feature& feature : needed_features(isa)) {
    if (!feature.present) missing.push_back(feature.name);
  }
  return missing;
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
  for (Isa isa : kIsas) {
    if (missing_features(isa).empty()) isas.push_back(isa);
  }
  return isas;
}

Isa select_isa(const std::string& forced) {
  if (forced.empty()) return available_isas().front();
  Isa isa = isa_from_name(forced);
  std::vector<std::string> missing = missing_features(isa);
  if (!missing.empty()) {
    throw std::invalid_argument("kernel path '" + forced +
                                "' cannot run on this machine: missing " + join(missing));
  }
  return isa;
}

const KernelTable& kernel_table(Isa isa) { return table_of(isa)(); }

}  // namespace trimtab
