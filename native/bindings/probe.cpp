// What this machine can do at best.
#include "core/probe.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bindings/module.h"

namespace nb = nanobind;

namespace {

trimtab::ProbeArithmetic arithmetic_from_name(const std::string& name) {
  if (name == "f32") return trimtab::ProbeArithmetic::f32;
  if (name == "bf16") return trimtab::ProbeArithmetic::bf16;
  if (name == "int8") return trimtab::ProbeArithmetic::int8;
  if (name == "int4") return trimtab::ProbeArithmetic::int4;
  throw std::invalid_argument("unknown weight format '" + name + "'");
}

void check_counts(int threads, int repeats) {
  if (threads < 1 || threads > 4096) throw std::invalid_argument("threads must be in [1, 4096]");
  if (repeats < 1 || repeats > 10000) throw std::invalid_argument("repeats must be in [1, 10000]");
}

}  // namespace

void bind_probe(nb::module_& m) {
  m.def(
      "probe_bandwidth",
      [](const std::string& isa, int threads, int64_t bytes, int repeats) {
        check_counts(threads, repeats);
        if (bytes < 256 * int64_t{threads}) throw std::invalid_argument("too few bytes");
        trimtab::Isa path = trimtab::select_isa(isa);
        nb::gil_scoped_release release;
        return trimtab::probe_bandwidth(path, threads, bytes, repeats);
      },
      nb::arg("isa"), nb::arg("threads"), nb::arg("bytes"), nb::arg("repeats"),
      "Bytes a second read by all threads together, one value a repeat.");
  m.def(
      "probe_handoff",
      [](int threads, int repeats) {
        check_counts(threads, repeats);
        if (threads < 2) throw std::invalid_argument("a hand-off takes two threads");
        nb::gil_scoped_release release;
        return trimtab::probe_handoff(threads, repeats);
      },
      nb::arg("threads"), nb::arg("repeats"),
      "Seconds that a cache line takes from thread to thread, one value a repeat.");
  m.def(
      "probe_arithmetic",
      [](const std::string& isa, int threads, const std::string& weights, int repeats) {
        check_counts(threads, repeats);
        trimtab::Isa path = trimtab::select_isa(isa);
        trimtab::ProbeArithmetic kind = arithmetic_from_name(weights);
        nb::gil_scoped_release release;
        return trimtab::probe_arithmetic(path, threads, kind, repeats);
      },
      nb::arg("isa"), nb::arg("threads"), nb::arg("weights"), nb::arg("repeats"),
      "Multiply-accumulates a second in registers, with the dot products of a weight format.");
}
