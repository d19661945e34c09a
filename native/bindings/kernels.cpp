#include "bindings/module.h"

void bind_kernels(nanobind::module_&) {}
