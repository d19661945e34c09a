// Kernel paths, and single kernels for tests.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/module.h"
#include "core/isa.h"

namespace nb = nanobind;

void bind_kernels(nb::module_& m) {
  m.def(
      "available_isas",
      [] {
        std::vector<std::string> names;
        for (trimtab::Isa isa : trimtab::available_isas()) names.push_back(trimtab::isa_name(isa));
        return names;
      },
      "Kernel paths that can run on this machine, the best first.");
  m.def(
      "missing_features",
      [](const std::string& isa) { return trimtab::missing_features(trimtab::isa_from_name(isa)); },
      nb::arg("isa"), "CPU features that a kernel path needs and this machine lacks.");
  m.def(
      "select_isa",
      [](const std::string& forced) { return trimtab::isa_name(trimtab::select_isa(forced)); },
      nb::arg("forced") = "",
      "The best kernel path of this machine, or the forced one; ValueError when it cannot run.");
}
