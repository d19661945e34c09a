#include "bindings/module.h"

void bind_decoder(nanobind::module_&) {}
