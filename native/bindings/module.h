#pragma once

#include <nanobind/nanobind.h>

void bind_kernels(nanobind::module_& m);  // single kernels, for tests and benchmarks
void bind_sampler(nanobind::module_& m);  // the sampler alone, for tests
void bind_decoder(nanobind::module_& m);  // ISA selection, thread count, the decoder
void bind_probe(nanobind::module_& m);    // machine limits: bandwidth, arithmetic
void bind_lookup(nanobind::module_& m);   // indexes of texts, drafts by lookup
