// What a model is, and in what formats it is held.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <utility>

#include "bindings/arrays.h"
#include "bindings/decoder.h"
#include "core/model.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace trimtab;

namespace {

void bind_formats(nb::module_& m) {
  nb::class_<MatrixFormat>(m, "MatrixFormat", "See kernels/kernels.h.")
      .def(
          "__init__",
          [](MatrixFormat* self, const std::string& weights, int32_t group_size,
             const std::string& scales, const std::string& offsets, float centre) {
            new (self) MatrixFormat{
                choice<WeightFormat>("weight format", weights,
                                     {"f32", "bf16", "int8", "int4", "int5", "int6", "fp8"}),
                group_size,
                choice<ScaleFormat>("scale format", scales, {"f16", "bf16", "f32", "supers"}),
                choice<OffsetFormat>("offset format", offsets, {"none", "zero", "offset"}), centre};
          },
          "weights"_a, "group_size"_a = 0, "scales"_a = "f16", "offsets"_a = "none",
          "centre"_a = 0.0f);
  nb::class_<LayerFormats>(m, "LayerFormats")
      .def(
          "__init__",
          [](LayerFormats* self, std::vector<MatrixFormat> qkv, const MatrixFormat& o,
             std::vector<MatrixFormat> gate_up, const MatrixFormat& down) {
            new (self) LayerFormats{std::move(qkv), o, std::move(gate_up), down};
          },
          "qkv"_a, "o"_a, "gate_up"_a, "down"_a);
}

void bind_shape(nb::module_& m) {
  nb::class_<LayerShape>(m, "LayerShape")
      .def(
          "__init__",
          [](LayerShape* self, int64_t window, int64_t rope) {
            new (self) LayerShape{window, rope};
          },
          "window"_a, "rope"_a);
  nb::class_<RopeShape>(m, "RopeShape")
      .def(
          "__init__",
          [](RopeShape* self, std::vector<double> inv_freq, double amplitude) {
            new (self) RopeShape{std::move(inv_freq), amplitude};
          },
          "inv_freq"_a, "amplitude"_a);
  nb::class_<ModelShape>(m, "ModelShape")
      .def(nb::init<>())
      .def_rw("vocab_size", &ModelShape::vocab_size)
      .def_rw("hidden_size", &ModelShape::hidden_size)
      .def_rw("intermediate_size", &ModelShape::intermediate_size)
      .def_rw("num_heads", &ModelShape::num_heads)
      .def_rw("num_kv_heads", &ModelShape::num_kv_heads)
      .def_rw("head_dim", &ModelShape::head_dim)
      .def_rw("layers", &ModelShape::layers)
      .def_rw("ropes", &ModelShape::ropes)
      .def_rw("norm_eps", &ModelShape::norm_eps)
      .def_rw("norm_weight_offset", &ModelShape::norm_weight_offset)
      .def_rw("gelu", &ModelShape::gelu)
      .def_rw("qk_norm", &ModelShape::qk_norm)
      .def_rw("post_norms", &ModelShape::post_norms)
      .def_rw("embedding_scale", &ModelShape::embedding_scale)
      .def_rw("attention_scale", &ModelShape::attention_scale)
      .def_rw("attention_softcap", &ModelShape::attention_softcap)
      .def_rw("logits_softcap", &ModelShape::logits_softcap)
      .def_rw("formats", &ModelShape::formats)
      .def_rw("head", &ModelShape::head)
      .def_rw("embedding_matrix", &ModelShape::embedding_matrix)
      .def("set_embedding_source",
           [](ModelShape& self, const std::string& name) {
             self.embedding = choice<EmbeddingSource>("embedding source", name,
                                                      {"f32", "bf16", "matrix", "head", "other"});
           })
      .def(
          "set_draft",
          [](ModelShape& self, int64_t num_features, int64_t vocab_size, bool norm_before_residual,
             const MatrixFormat& fc) {
            self.draft = {num_features, vocab_size, norm_before_residual, fc};
          },
          "num_features"_a, "vocab_size"_a, "norm_before_residual"_a, "fc"_a,
          "Makes it a draft head; see core/model.h.")
      .def("set_kv_cache",
           [](ModelShape& self, const std::string& name) { self.kv_format = kv_format(name); });
}

}  // namespace

KVFormat kv_format(const std::string& name) {
  if (name == "f32") return KVFormat::f32;
  if (name == "bf16") return KVFormat::bf16;
  if (name == "int8") return KVFormat::int8;
  throw std::invalid_argument("unknown KV format '" + name + "'");
}

void bind_model_shape(nb::module_& m) {
  bind_formats(m);
  bind_shape(m);
}
