// Measures what this machine can do: the limits that speeds are compared with.
#pragma once

#include <cstdint>
#include <vector>

#include "core/isa.h"
#include "kernels/probe_kernels.h"

namespace trimtab {

// Bytes a second that `threads` threads read together, each from its own part of a buffer of
// `bytes` (rounded down to 256 a thread); one value for each repeat. Throws std::bad_alloc.
std::vector<double> probe_bandwidth(Isa isa, int threads, int64_t bytes, int repeats);

// Seconds that a cache line takes from one thread to the next, passed around `threads` of them (at
// least 2) a few hundred times; one value for each repeat. Where a hypervisor or a scheduler has
// put threads on cores that share no cache, it is several times as long.
std::vector<double> probe_handoff(int threads, int repeats);

// Multiply-accumulates a second of `threads` threads together; one value for each repeat.
std::vector<double> probe_arithmetic(Isa isa, int threads, ProbeArithmetic kind, int repeats);

}  // namespace trimtab
