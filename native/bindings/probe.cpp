#include "bindings/module.h"

void bind_probe(nanobind::module_&) {}
