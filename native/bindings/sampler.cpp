// The sampler alone, for its tests.
#include "core/sampler.h"

#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <array>
#include <optional>

#include "bindings/module.h"
#include "bindings/sampling_arrays.h"
#include "core/isa.h"
#include "core/philox.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Targets = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <typename T>
nb::object own(std::vector<T>&& values, std::initializer_list<size_t> shape) {
  auto* held = new std::vector<T>(std::move(values));
  nb::capsule owner(held, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(held->data(), shape, owner));
}

nb::tuple sample(const Logits& logits, nb::handle batch, const std::optional<Targets>& targets,
                 const std::string& isa) {
  const trimtab::KernelTable& kernels = trimtab::kernel_table(trimtab::select_isa(isa));
  const auto rows = static_cast<int64_t>(logits.shape(0));
  const auto vocab = static_cast<int64_t>(logits.shape(1));
  SamplingArrays arrays;
  const trimtab::SamplingView& view = arrays.read(batch, rows, vocab);
  if (targets && static_cast<int64_t>(targets->shape(0)) != rows) {
    throw std::invalid_argument("targets: one a row");
  }
  const int64_t width = arrays.top_width();
  const auto count = static_cast<size_t>(rows);
  const auto top_count = static_cast<size_t>(rows * width);
  std::vector<int32_t> tokens(count), top_ids(top_count);
  std::vector<float> logprobs(count), top_logprobs(top_count), target_logprobs(count);
  {
    nb::gil_scoped_release released;
    trimtab::SamplerScratch scratch;
    for (int64_t row = 0; row < rows; ++row) {
      const int32_t target = targets ? targets->data()[row] : -1;
      if (target >= vocab) throw std::invalid_argument("targets: beyond the vocabulary");
      const trimtab::SampleOutput out{tokens.data() + row,
                                      logprobs.data() + row,
                                      top_ids.data() + row * width,
                                      top_logprobs.data() + row * width,
                                      width,
                                      target_logprobs.data() + row};
      trimtab::sample_row(kernels.sampling, logits.data() + row * vocab, vocab, view, row, target,
                          scratch, out);
    }
  }
  const auto shape_rows = count;
  const auto shape_width = static_cast<size_t>(width);
  return nb::make_tuple(own(std::move(tokens), {shape_rows}),
                        own(std::move(logprobs), {shape_rows}),
                        own(std::move(top_ids), {shape_rows, shape_width}),
                        own(std::move(top_logprobs), {shape_rows, shape_width}),
                        targets ? own(std::move(target_logprobs), {shape_rows}) : nb::none());
}

std::array<uint32_t, 4> philox(const std::array<uint32_t, 4>& counter,
                               const std::array<uint32_t, 2>& key) {
  const trimtab::PhiloxBlock block =
      trimtab::philox4x32_10(counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
  return {block.word[0], block.word[1], block.word[2], block.word[3]};
}

}  // namespace

void bind_sampler(nb::module_& m) {
  m.def(
      "sample", &sample, "logits"_a.noconvert(), "sampling"_a, "targets"_a.none() = nb::none(),
      "isa"_a = "",
      "Samples each row of logits [R, vocab] by a SamplingBatch, on the named or best ISA path. "
      "Returns (tokens, logprobs, "
      "top_ids, top_logprobs, target_logprobs or None), as in StepResult. Raises ValueError for a "
      "batch that breaks its contract.");
  m.def("philox4x32_10", &philox, "counter"_a, "key"_a);
  m.def("gumbel_noise", &trimtab::gumbel_noise, "seed"_a, "position"_a, "token_id"_a);
}
