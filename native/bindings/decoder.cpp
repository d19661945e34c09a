// The decoder: building a model tensor by tensor, stepping it, moving its KV blocks.
#include "core/decoder.h"

#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "bindings/arrays.h"
#include "bindings/decoder.h"
#include "bindings/step_arrays.h"
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
  ModelBuilder(const ModelShape& shape, const std::string& isa, int threads)
      : kernels_(kernel_table(select_isa(isa))), pool_(std::make_shared<ThreadPool>(threads)) {
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

  void map_packed(int descriptor, int64_t file_bytes, int64_t arena_offset,
                  int64_t vectors_offset) {
    nb::gil_scoped_release released;
    model_ = map_model(model_.shape, descriptor, file_bytes, arena_offset, vectors_offset);
  }

  int64_t weight_bytes() const { return model_.arena_bytes(); }

  const Model& model() const { return model_; }

  std::unique_ptr<Decoder> build(int64_t num_blocks) {
    return std::make_unique<Decoder>(kernels_, pool_, std::move(model_), num_blocks);
  }

 private:
  LayerWeights& layer_at(int layer) {
    if (layer < 0 || layer >= static_cast<int>(model_.layers.size()))
      throw std::invalid_argument("layer " + std::to_string(layer) + " does not exist");
    return model_.layers[layer];
  }

  std::vector<float>& norm_slot(int layer, const std::string& name) {
    if (name == "final_norm") return model_.final_norm;
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
      check({shape.query_size(), shape.kv_size(), shape.kv_size()}, shape.hidden_size);
    else if (name == "q")
      check({shape.query_size()}, shape.hidden_size);
    else if (name == "k" || name == "v")
      check({shape.kv_size()}, shape.hidden_size);
    else if (name == "o")
      check({shape.hidden_size}, shape.query_size());
    else if (name == "gate_up")
      check({shape.intermediate_size, shape.intermediate_size}, shape.hidden_size);
    else if (name == "gate" || name == "up")
      check({shape.intermediate_size}, shape.hidden_size);
    else if (name == "down")
      check({shape.hidden_size}, shape.intermediate_size);
    else if (name == "lm_head" || name == "embed")
      check({shape.vocab_size}, shape.hidden_size);
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

// The decoder as Python sees it.
class BoundDecoder {
 public:
  explicit BoundDecoder(std::unique_ptr<Decoder> decoder) : decoder_(std::move(decoder)) {}

  KVCache& cache() { return decoder_->cache(); }
  Decoder& decoder() { return *decoder_; }
  nb::tuple step(nb::handle batch);

 private:
  // What a step without logprobs gives, read-only, and the very same objects while batches are of
  // the same size: making an array costs more than a thousand instructions.
  struct Nothing {
    int64_t rows = -1;
    nb::object logprobs, top_ids, top_logprobs;
  };
  const Nothing& nothing(int64_t rows);

  std::unique_ptr<Decoder> decoder_;
  StepArrays arrays_;
  Nothing nothing_;
};

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

nb::tuple BoundDecoder::step(nb::handle batch) {
  const int64_t vocab = decoder_->model().shape.vocab_size;
  const StepInput& step = arrays_.read(batch, vocab);
  const bool with_logits = nb::cast<bool>(batch.attr("return_logits"));
  const bool with_targets = step.targets != nullptr;
  const int64_t rows = step.num_logits, width = arrays_.top_width();
  OwnedArray<int32_t> tokens(rows), top_ids(rows * width);
  OwnedArray<float> logprobs(rows), top_logprobs(rows * width);
  OwnedArray<float> target_logprobs(with_targets ? rows : 0);
  OwnedArray<float> logits(with_logits ? rows * vocab : 0);
  const int64_t hidden_size = decoder_->model().shape.hidden_size, num_hidden = step.num_hidden;
  OwnedArray<float> hidden(num_hidden * hidden_size);
  StepOutput out;
  out.tokens = tokens.data();
  out.logprobs = logprobs.data();
  out.top_ids = top_ids.data();
  out.top_logprobs = top_logprobs.data();
  out.top_width = width;
  out.target_logprobs = with_targets ? target_logprobs.data() : nullptr;
  out.logits = with_logits ? logits.data() : nullptr;
  out.hidden = hidden.data();
  {
    nb::gil_scoped_release released;
    decoder_->step(step, out);
  }
  const auto n = static_cast<size_t>(rows), w = static_cast<size_t>(width);
  const nb::object given =
      num_hidden == 0
          ? nb::none()
          : hidden.release({static_cast<size_t>(num_hidden), static_cast<size_t>(hidden_size)});
  if (!arrays_.wants_logprobs() && !with_targets && !with_logits) {
    const Nothing& none = nothing(rows);
    return nb::make_tuple(tokens.release({n}), none.logprobs, none.top_ids, none.top_logprobs,
                          nb::none(), nb::none(), given);
  }
  return nb::make_tuple(
      tokens.release({n}), logprobs.release({n}), top_ids.release({n, w}),
      top_logprobs.release({n, w}), with_targets ? target_logprobs.release({n}) : nb::none(),
      with_logits ? logits.release({n, static_cast<size_t>(vocab)}) : nb::none(), given);
}

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
  nb::class_<ModelBuilder>(m, "ModelBuilder")
      .def(nb::init<const ModelShape&, const std::string&, int>(), "shape"_a, "isa"_a, "threads"_a)
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
      .def("map_packed", &ModelBuilder::map_packed, "descriptor"_a, "file_bytes"_a,
           "arena_offset"_a, "vectors_offset"_a,
           "Takes the whole model from a file; see core/packed_model.h.")
      .def("packed_arena", &packed_arena)
      .def("packed_vectors", &packed_vectors)
      .def_prop_ro("weight_bytes", &ModelBuilder::weight_bytes)
      .def(
          "build",
          [](ModelBuilder& self, int64_t num_blocks) {
            return std::make_unique<BoundDecoder>(self.build(num_blocks));
          },
          "num_blocks"_a, "The decoder; the builder is empty afterwards.");
  nb::class_<BoundDecoder>(m, "Decoder")
      .def("step", &BoundDecoder::step, "batch"_a,
           "Runs a StepBatch. Returns (tokens, logprobs, top_ids, top_logprobs, target_logprobs "
           "or None, logits or None, hidden or None), as in StepResult.")
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
  m.attr("PACKED_REVISION") = kPackedRevision;
  m.attr("KV_BLOCK_TOKENS") = static_cast<int>(kBlockTokens);
  bind_attention(m);
}
