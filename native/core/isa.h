// Which kernel path runs: what this processor can do, and what was asked for.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace trimtab {

enum class Isa { portable, neon, avx2, avx512 };

// "portable", "neon", "avx2", "avx512".
const char* isa_name(Isa isa);

// The path of that name; throws std::invalid_argument where there is none.
Isa isa_from_name(const std::string& name);

// CPU features that the path needs and this processor (or its operating system) lacks; empty when
// the path can run. A path that is not in this build lacks "a build for this processor".
std::vector<std::string> missing_features(Isa isa);

// Paths that can run here, the best first. Never empty.
std::vector<Isa> available_isas();

// The best available path, or the named one. Throws std::invalid_argument, one line, when `forced`
// is unknown or names a path that cannot run here.
Isa select_isa(const std::string& forced = "");

// The path's kernels; `isa` must be available.
const KernelTable& kernel_table(Isa isa);

}  // namespace trimtab
