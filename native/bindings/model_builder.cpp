// Building a model tensor by tensor, or from a packed file.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <utility>

#include "bindings/arrays.h"
#include "bindings/bound_decoder.h"
#include "bindings/decoder.h"
#include "bindings/stored_integers.h"
#include "core/isa.h"
#include "core/packed_model.h"
#include "core/packing.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace trimtab;

namespace {

// float32, float16, or uint16 for the bit patterns of bf16.
StoredMatrix stored_matrix(const AnyArray& array) {
  if (array.ndim() != 2) throw std::invalid_argument("a weight matrix must have two dimensions");
  const StoredType type = array.dtype() == nb::dtype<float>()      ? StoredType::f32
                          : array.dtype() == nb::dtype<uint16_t>() ? StoredType::bf16
                                                                   : StoredType::f16;
  const auto is_half = [&] {
    return array.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float) &&
           array.dtype().bits == 16;
  };
  if (type == StoredType::f16 && !is_half())
    throw std::invalid_argument("a weight matrix must be float32, float16 or bf16 as uint16");
  return {array.data(), type, static_cast<int64_t>(array.shape(0)),
          static_cast<int64_t>(array.shape(1))};
}

template <typename Part>
std::vector<const float*> bias_pointers(const std::string& name, const std::vector<Part>& parts,
                                        const std::vector<ConstArray<float, 1>>& biases) {
  std::vector<const float*> pointers;
  for (size_t i = 0; i < biases.size(); ++i) {
    if (i >= parts.size() || static_cast<int64_t>(biases[i].shape(0)) != parts[i].rows)
      throw std::invalid_argument(name + ": a bias does not fit its matrix");
    pointers.push_back(biases[i].data());
  }
  return pointers;
}

RowOrder row_order(const std::string& name) {
  return name == "gate_up" ? RowOrder::interleaved_panels : RowOrder::concatenated;
}

// What Python wants done between pieces of a long conversion; None for nothing.
BetweenPieces between_pieces(const nb::object& callback) {
  if (callback.is_none()) return [] {};
  return [callback] {
    nb::gil_scoped_acquire acquired;
    callback();
  };
}

// Takes tensors one by one, packs each at once, and gives them away as a decoder. Or takes the
// whole model from a packed file.
class ModelBuilder {
 public:
  ModelBuilder(const ModelShape& shape, const std::string& isa, std::shared_ptr<ThreadPool> pool)
      : kernels_(kernel_table(select_isa(isa))), pool_(std::move(pool)) {
    shape.check();
    model_.shape = shape;
    model_.layers.resize(shape.layers.size());
  }

  // layer -1: a tensor of the whole model.
  void set_norm(int layer, const std::string& name, const ConstArray<float, 1>& values) {
    const bool head = name == "q_norm" || name == "k_norm";
    const int64_t size = head ? model_.shape.head_dim : model_.shape.hidden_size;
    if (static_cast<int64_t>(values.shape(0)) != size)
      throw std::invalid_argument(name + " has " + std::to_string(values.shape(0)) +
                                  " values, not " + std::to_string(size));
    std::vector<float>& norm = norm_slot(layer, name);
    norm.resize(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i)
      norm[i] = static_cast<float>(model_.shape.norm_weight_offset) + values.data()[i];
  }

  void set_matrix(int layer, const std::string& name, const std::vector<AnyArray>& parts,
                  const std::vector<ConstArray<float, 1>>& biases, const nb::object& between) {
    const BetweenPieces callback = between_pieces(between);
    std::vector<StoredMatrix> matrices;
    for (const AnyArray& part : parts) matrices.push_back(stored_matrix(part));
    check_parts(name, matrices);
    const PackedExtras extras{bias_pointers(name, matrices, biases), {}};
    reserve();
    Matrix& slot = matrix_slot(layer, name);
    nb::gil_scoped_release released;
    pack_matrix(*pool_, kernels_.gemm, model_, slot, matrices, extras, row_order(name), callback);
  }

  void set_integers(int layer, const std::string& name, const std::vector<nb::tuple>& parts,
                    const std::vector<ConstArray<float, 1>>& biases,
                    const std::vector<int32_t>& columns) {
    reserve();
    Matrix& slot = matrix_slot(layer, name);
    std::vector<StoredIntegers> matrices;
    for (const nb::tuple& part : parts)
      matrices.push_back(stored_integers(name, part, slot.packed));
    check_parts(name, matrices);
    const PackedExtras extras{bias_pointers(name, matrices, biases), columns};
    nb::gil_scoped_release released;
    pack_integers(*pool_, model_, slot, matrices, extras, row_order(name));
  }

  void set_embedding(const AnyArray& table, const nb::object& between) {
    const BetweenPieces callback = between_pieces(between);
    const StoredMatrix source = stored_matrix(table);
    check_shape("embed", source.rows, source.cols, model_.shape.vocab_size,
                model_.shape.hidden_size);
    nb::gil_scoped_release released;
    reserve();
    load_embedding(*pool_, model_, source, callback);
  }

  void set_target_ids(const ConstArray<int32_t, 1>& ids) {
    const ModelShape& shape = model_.shape;
    const auto count = static_cast<int64_t>(ids.shape(0));
    if (!shape.is_draft() || count != shape.draft.vocab_size)
      throw std::invalid_argument("target_ids: one for each row of a draft head's lm_head");
    for (int64_t i = 0; i < count; ++i)
      if (ids.data()[i] < 0 || ids.data()[i] >= shape.vocab_size)
        throw std::invalid_argument("target_ids: outside the vocabulary");
    model_.target_ids.assign(ids.data(), ids.data() + count);
  }

  void map_packed(int descriptor, int64_t file_bytes, int64_t arena_offset,
                  int64_t vectors_offset) {
    nb::gil_scoped_release released;
    model_ = map_model(model_.shape, descriptor, file_bytes, arena_offset, vectors_offset);
  }

  int64_t weight_bytes() const { return model_.arena_bytes(); }

  const Model& model() const { return model_; }

  std::unique_ptr<Decoder> build(int64_t num_blocks, const Decoder* embeddings) {
    return std::make_unique<Decoder>(kernels_, pool_, std::move(model_), num_blocks, embeddings);
  }

 private:
  LayerWeights& layer_at(int layer) {
    if (layer < 0 || layer >= static_cast<int>(model_.layers.size()))
      throw std::invalid_argument("layer " + std::to_string(layer) + " does not exist");
    return model_.layers[layer];
  }

  std::vector<float>& norm_slot(int layer, const std::string& name) {
    if (name == "final_norm") return model_.final_norm;
    if (name == "hidden_norm") return model_.hidden_norm;
    LayerWeights& weights = layer_at(layer);
    if (name == "attn_norm") return weights.attn_norm;
    if (name == "mlp_norm") return weights.mlp_norm;
    if (name == "post_attn_norm") return weights.post_attn_norm;
    if (name == "post_mlp_norm") return weights.post_mlp_norm;
    if (name == "q_norm") return weights.q_norm;
    if (name == "k_norm") return weights.k_norm;
    throw std::invalid_argument("unknown norm '" + name + "'");
  }

  // After `reserve`.
  Matrix& matrix_slot(int layer, const std::string& name) {
    if (name == "lm_head") return model_.lm_head;
    if (name == "fc" && model_.shape.is_draft()) return model_.fc;
    if (name == "embed" && model_.shape.embedding == EmbeddingSource::matrix)
      return model_.embedding_matrix;
    LayerWeights& weights = layer_at(layer);
    if (name == "o") return weights.o;
    if (name == "down") return weights.down;
    if (weights.qkv.size() == 1 && name == "qkv") return weights.qkv[0];
    if (weights.gate_up.size() == 1 && name == "gate_up") return weights.gate_up[0];
    const std::string parts = "qkv";
    if (weights.qkv.size() == 3 && name.size() == 1 && parts.find(name) != std::string::npos)
      return weights.qkv[parts.find(name)];
    if (weights.gate_up.size() == 2 && (name == "gate" || name == "up"))
      return weights.gate_up[name == "up"];
    throw std::invalid_argument("unknown matrix '" + name + "'");
  }

  template <typename Part>
  void check_parts(const std::string& name, const std::vector<Part>& parts) const {
    const ModelShape& shape = model_.shape;
    const auto check = [&](std::initializer_list<int64_t> rows, int64_t cols) {
      if (parts.size() != rows.size())
        throw std::invalid_argument(name + ": needs " + std::to_string(rows.size()) + " parts");
      for (size_t i = 0; i < parts.size(); ++i)
        check_shape(name, parts[i].rows, parts[i].cols, rows.begin()[i], cols);
    };
    if (name == "qkv")
      check({shape.query_size(), shape.kv_size(), shape.kv_size()}, shape.qkv_columns());
    else if (name == "q")
      check({shape.query_size()}, shape.qkv_columns());
    else if (name == "k" || name == "v")
      check({shape.kv_size()}, shape.qkv_columns());
    else if (name == "o")
      check({shape.hidden_size}, shape.query_size());
    else if (name == "gate_up")
      check({shape.intermediate_size, shape.intermediate_size}, shape.hidden_size);
    else if (name == "gate" || name == "up")
      check({shape.intermediate_size}, shape.hidden_size);
    else if (name == "down")
      check({shape.hidden_size}, shape.intermediate_size);
    else if (name == "lm_head")
      check({shape.head_rows()}, shape.hidden_size);
    else if (name == "embed")
      check({shape.vocab_size}, shape.hidden_size);
    else if (name == "fc")
      check({shape.hidden_size}, shape.draft.num_features);
    else
      throw std::invalid_argument("unknown matrix '" + name + "'");
  }

  // The first tensor asks the system for the memory of all.
  void reserve() {
    if (model_.memory.data() != nullptr) return;
    model_.place(Region(static_cast<size_t>(model_.arena_bytes()), "weights"), 0);
  }

  const KernelTable& kernels_;
  std::shared_ptr<ThreadPool> pool_;
  Model model_;
};

// A read-only view of the packed matrices, all of them; valid until `build`.
nb::object packed_arena(nb::handle_t<ModelBuilder> self) {
  const Model& model = nb::cast<ModelBuilder&>(self).model();
  model.check_complete();
  return nb::cast(nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(
      model.arena(), {static_cast<size_t>(model.arena_bytes())}, self));
}

nb::bytes packed_vectors(const ModelBuilder& builder) {
  const std::string bytes = save_vectors(builder.model());
  return nb::bytes(bytes.data(), bytes.size());
}

}  // namespace

void bind_model_builder(nb::module_& m) {
  nb::class_<ThreadPool>(m, "ThreadPool", "Models that run one after the other can share one.")
      .def(nb::init<int>(), "threads"_a)
      .def_prop_ro("num_threads", &ThreadPool::num_threads);
  nb::class_<ModelBuilder>(m, "ModelBuilder")
      .def(nb::init<const ModelShape&, const std::string&, std::shared_ptr<ThreadPool>>(),
           "shape"_a, "isa"_a, "pool"_a)
      .def("set_norm", &ModelBuilder::set_norm, "layer"_a, "name"_a, "values"_a.noconvert())
      .def("set_matrix", &ModelBuilder::set_matrix, "layer"_a, "name"_a, "parts"_a, "biases"_a,
           "between"_a = nb::none(),
           "Packs one matrix: qkv (q, k, v), o, gate_up (gate, up), down or lm_head; biases is "
           "empty or has one float32 vector for each part. `between` is called now and then.")
      .def("set_integers", &ModelBuilder::set_integers, "layer"_a, "name"_a, "parts"_a, "biases"_a,
           "columns"_a,
           "Takes one matrix as integers: of each part (values, scales, offsets, super_scales, "
           "super_offsets), as core/packing.h has them; columns is empty or their order.")
      .def("set_embedding", &ModelBuilder::set_embedding, "table"_a, "between"_a = nb::none())
      .def("set_target_ids", &ModelBuilder::set_target_ids, "ids"_a.noconvert(),
           "Of a draft head: the target's id of each row of lm_head.")
      .def("map_packed", &ModelBuilder::map_packed, "descriptor"_a, "file_bytes"_a,
           "arena_offset"_a, "vectors_offset"_a,
           "Takes the whole model from a file; see core/packed_model.h.")
      .def("packed_arena", &packed_arena)
      .def("packed_vectors", &packed_vectors)
      .def_prop_ro("weight_bytes", &ModelBuilder::weight_bytes)
      .def(
          "build",
          [](ModelBuilder& self, int64_t num_blocks, BoundDecoder* embeddings) {
            return std::make_unique<BoundDecoder>(
                self.build(num_blocks, embeddings == nullptr ? nullptr : &embeddings->decoder()));
          },
          "num_blocks"_a, "embeddings"_a.none() = nb::none(), nb::keep_alive<0, 3>(),
          "The decoder; the builder is empty afterwards. A draft head without embeddings looks "
          "them up in another decoder.");
  m.attr("PACKED_REVISION") = kPackedRevision;
}
