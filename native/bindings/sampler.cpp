#include "bindings/module.h"

void bind_sampler(nanobind::module_&) {}
