// The decoder: stepping it, moving its KV blocks.
#include "core/decoder.h"

#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "bindings/arrays.h"
#include "bindings/bound_decoder.h"
#include "bindings/decoder.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace trimtab;

const BoundDecoder::Nothing& BoundDecoder::nothing(int64_t rows) {
  if (nothing_.rows == rows) return nothing_;
  const auto n = static_cast<size_t>(rows);
  OwnedArray<float> logprobs(rows);
  std::fill_n(logprobs.data(), n, 0.0f);
  nothing_.logprobs = logprobs.release({n});
  nothing_.top_ids = OwnedArray<int32_t>(0).release({n, 0});
  nothing_.top_logprobs = OwnedArray<float>(0).release({n, 0});
  for (const nb::object* array : {&nothing_.logprobs, &nothing_.top_ids, &nothing_.top_logprobs})
    array->attr("setflags")("write"_a = false);
  nothing_.rows = rows;
  return nothing_;
}

namespace {

// A step of a draft head needs its inputs, no other takes any.
void read_inputs(const std::optional<ConstArray<float, 2>>& inputs, const ModelShape& shape,
                 StepInput& step) {
  if (inputs.has_value() != shape.is_draft())
    throw std::invalid_argument("inputs: for draft heads, and needed there");
  if (!inputs.has_value()) return;
  step.inputs = inputs->data();
  step.input_size = static_cast<int64_t>(inputs->shape(1));
  if (static_cast<int64_t>(inputs->shape(0)) != step.num_rows)
    throw std::invalid_argument("inputs: one row for each of token_ids");
  if (step.input_size != shape.draft.num_features && step.input_size != shape.hidden_size)
    throw std::invalid_argument("inputs: neither features nor hidden states");
}

}  // namespace

nb::tuple BoundDecoder::step(nb::handle batch, const std::optional<ConstArray<float, 2>>& inputs) {
  const int64_t vocab = decoder_->model().shape.vocab_size;
  StepInput& step = arrays_.read(batch, vocab);
  read_inputs(inputs, decoder_->model().shape, step);
  const bool with_logits = nb::cast<bool>(batch.attr("return_logits"));
  const bool with_targets = step.targets != nullptr;
  const int64_t rows = step.num_logits, width = arrays_.top_width();
  OwnedArray<int32_t> tokens(rows), top_ids(rows * width);
  OwnedArray<float> logprobs(rows), top_logprobs(rows * width);
  OwnedArray<float> target_logprobs(with_targets ? rows : 0);
  OwnedArray<float> logits(with_logits ? rows * vocab : 0);
  const int64_t hidden_size = decoder_->model().shape.hidden_size, num_hidden = step.num_hidden;
  OwnedArray<float> hidden(num_hidden * hidden_size);
  if (step.features && decoder_->num_features() == 0)
    throw std::invalid_argument("features: the decoder was given no feature layers");
  OwnedArray<float> features(step.features ? step.num_rows * decoder_->num_features() : 0);
  StepOutput out;
  out.tokens = tokens.data();
  out.logprobs = logprobs.data();
  out.top_ids = top_ids.data();
  out.top_logprobs = top_logprobs.data();
  out.top_width = width;
  out.target_logprobs = with_targets ? target_logprobs.data() : nullptr;
  out.logits = with_logits ? logits.data() : nullptr;
  out.hidden = hidden.data();
  out.features = features.data();
  {
    nb::gil_scoped_release released;
    decoder_->step(step, out);
  }
  const auto n = static_cast<size_t>(rows), w = static_cast<size_t>(width);
  const nb::object given =
      num_hidden == 0
          ? nb::none()
          : hidden.release({static_cast<size_t>(num_hidden), static_cast<size_t>(hidden_size)});
  const nb::object given_features =
      step.features ? features.release({static_cast<size_t>(step.num_rows),
                                        static_cast<size_t>(decoder_->num_features())})
                    : nb::none();
  if (!arrays_.wants_logprobs() && !with_targets && !with_logits) {
    const Nothing& none = nothing(rows);
    return nb::make_tuple(tokens.release({n}), none.logprobs, none.top_ids, none.top_logprobs,
                          nb::none(), nb::none(), given, given_features);
  }
  return nb::make_tuple(tokens.release({n}), logprobs.release({n}), top_ids.release({n, w}),
                        top_logprobs.release({n, w}),
                        with_targets ? target_logprobs.release({n}) : nb::none(),
                        with_logits ? logits.release({n, static_cast<size_t>(vocab)}) : nb::none(),
                        given, given_features);
}

namespace {

void copy_blocks(BoundDecoder& decoder, const ConstArray<int32_t, 1>& sources,
                 const ConstArray<int32_t, 1>& destinations) {
  if (sources.shape(0) != destinations.shape(0))
    throw std::invalid_argument("sources and destinations differ in length");
  nb::gil_scoped_release released;
  decoder.cache().copy_blocks(sources.data(), destinations.data(),
                              static_cast<int64_t>(sources.shape(0)));
}

nb::object export_blocks(BoundDecoder& decoder, const ConstArray<int32_t, 1>& block_ids) {
  const int64_t count = static_cast<int64_t>(block_ids.shape(0));
  const int64_t bytes = decoder.cache().bytes_per_block();
  OwnedArray<uint8_t> data(count * bytes);
  {
    nb::gil_scoped_release released;
    decoder.cache().export_blocks(block_ids.data(), count, data.data());
  }
  return data.release({static_cast<size_t>(count), static_cast<size_t>(bytes)});
}

void import_blocks(BoundDecoder& decoder, const ConstArray<int32_t, 1>& block_ids,
                   const ConstArray<uint8_t, 2>& data) {
  if (data.shape(0) != block_ids.shape(0) ||
      static_cast<int64_t>(data.shape(1)) != decoder.cache().bytes_per_block())
    throw std::invalid_argument("data: must be [blocks, bytes_per_block]");
  nb::gil_scoped_release released;
  decoder.cache().import_blocks(block_ids.data(), static_cast<int64_t>(block_ids.shape(0)),
                                data.data());
}

}  // namespace

void bind_decoder(nb::module_& m) {
  bind_model_shape(m);
  bind_model_builder(m);
  nb::class_<BoundDecoder>(m, "Decoder")
      .def("step", &BoundDecoder::step, "batch"_a, "inputs"_a.noconvert().none() = nb::none(),
           "Runs a StepBatch; of a draft head, with features or hidden states [num_rows, size]. "
           "Returns (tokens, logprobs, top_ids, top_logprobs, target_logprobs "
           "or None, logits or None, hidden or None, features or None), as in StepResult.")
      .def(
          "set_feature_layers",
          [](BoundDecoder& self, std::vector<int64_t> layers) {
            self.decoder().set_feature_layers(std::move(layers));
          },
          "layers"_a, "What StepResult.features is of.")
      .def(
          "set_timed", [](BoundDecoder& self, bool timed) { self.decoder().set_timed(timed); },
          "timed"_a, "Whether later steps take their times.")
      .def(
          "times", [](BoundDecoder& self) { return self.decoder().times(); },
          "Seconds of the latest timed step by kind of work; see core/decoder.h.")
      .def(
          "progress", [](BoundDecoder& self) { return self.decoder().progress(); },
          "Changes while a step gets on; any thread may ask.")
      .def("copy_blocks", &copy_blocks, "sources"_a.noconvert(), "destinations"_a.noconvert())
      .def("export_blocks", &export_blocks, "block_ids"_a.noconvert())
      .def("import_blocks", &import_blocks, "block_ids"_a.noconvert(), "data"_a.noconvert());
  m.def(
      "kv_bytes_per_block",
      [](const std::string& format, int64_t head_dim, int64_t num_kv_heads, int64_t num_layers) {
        return KVCache::bytes_per_block(kv_format(format), head_dim, num_kv_heads, num_layers);
      },
      "kv_cache"_a, "head_dim"_a, "num_kv_heads"_a, "num_layers"_a);
  m.attr("KV_BLOCK_TOKENS") = static_cast<int>(kBlockTokens);
  bind_attention(m);
}
