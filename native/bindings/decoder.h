#pragma once

#include <string>

#include "bindings/module.h"
#include "kernels/layer_kernels.h"

// Throws std::invalid_argument for a name that is none of f32, bf16, int8.
trimtab::KVFormat kv_format(const std::string& name);

void bind_model_builder(nanobind::module_& m);
void bind_model_shape(nanobind::module_& m);
void bind_attention(nanobind::module_& m);  // attention alone, for its tests
