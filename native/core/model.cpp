#include "core/model.h"

#include <stdexcept>
#include <utility>

#include "core/floats.h"

namespace trimtab {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

void require_positive(const char* name, int64_t value) {
  if (value < 1 || value > (int64_t{1} << 31))
    refuse(std::string(name) + "=" + std::to_string(value) + ": must be positive and below 2^31");
}

void require_loaded(bool loaded, const std::string& name) {
  if (!loaded) refuse("weight " + name + " was never loaded");
}

void check_format(const MatrixFormat& format) {
  const int32_t group = format.group_size;
  const bool fp8 = format.weights == WeightFormat::fp8;
  if (!fp8 && integer_bits(format.weights) == 0) return;
  const bool known = group == 16 || group == 32 || group == 64 || group == 128;
  if (!known && !(group == 0 && format.weights == WeightFormat::int8))
    refuse("group_size=" + std::to_string(group) + ": the kernels take 16, 32, 64 and 128");
  const bool supers = format.scales == ScaleFormat::supers;
  if (supers && format.offsets == OffsetFormat::zero) refuse("super-scales have no zero points");
  if ((group == 0 || fp8) && (supers || format.offsets != OffsetFormat::none))
    refuse("fp8, and int8 without groups, have scales and nothing else");
}

}  // namespace

float ModelShape::rounded_embedding_scale() const {
  const float scale = static_cast<float>(embedding_scale);
  if (embedding != EmbeddingSource::bf16) return scale;
  return widen_bf16(round_bf16(scale));
}

void ModelShape::check() const {
  require_positive("vocab_size", vocab_size);
  require_positive("hidden_size", hidden_size);
  require_positive("intermediate_size", intermediate_size);
  require_positive("num_heads", num_heads);
  require_positive("num_kv_heads", num_kv_heads);
  require_positive("head_dim", head_dim);
  require_positive("num_layers", static_cast<int64_t>(layers.size()));
  if (head_dim % 16 != 0)
    refuse("head_dim=" + std::to_string(head_dim) + ": the CPU executor needs a multiple of 16");
  if (num_heads % num_kv_heads != 0)
    refuse("num_heads=" + std::to_string(num_heads) +
           " is no multiple of num_kv_heads=" + std::to_string(num_kv_heads));
  for (const RopeShape& rope : ropes)
    if (2 * static_cast<int64_t>(rope.inv_freq.size()) > head_dim)
      refuse("rotary_dim=" + std::to_string(2 * rope.inv_freq.size()) + " is larger than head_dim");
  for (const LayerShape& layer : layers) {
    if (layer.rope < 0 || layer.rope >= static_cast<int64_t>(ropes.size()))
      refuse("a layer names rope " + std::to_string(layer.rope) + ", which does not exist");
    if (layer.window < 0) refuse("sliding_window=" + std::to_string(layer.window));
  }
  if (formats.size() != layers.size()) refuse("formats: one for each layer");
  for (const LayerFormats& format : formats) {
    if ((format.qkv.size() != 1 && format.qkv.size() != 3) ||
        (format.gate_up.size() != 1 && format.gate_up.size() != 2))
      refuse("formats of a layer: one or three of qkv, one or two of gate_up");
    for (const MatrixFormat& part : format.qkv) check_format(part);
    for (const MatrixFormat& part : format.gate_up) check_format(part);
    check_format(format.o);
    check_format(format.down);
  }
  check_format(head);
  if (embedding == EmbeddingSource::matrix) {
    check_format(embedding_matrix);
    if (integer_bits(embedding_matrix.weights) == 0)
      refuse("embeddings that are not integers are a table");
  }
  if (is_draft()) {
    require_positive("num_features", draft.num_features);
    require_positive("draft_vocab_size", draft.vocab_size);
    check_format(draft.fc);
    if (layers.size() != 1) refuse("a draft head has one layer");
    if (draft.vocab_size > vocab_size)
      refuse("draft_vocab_size=" + std::to_string(draft.vocab_size) +
             " is larger than vocab_size=" + std::to_string(vocab_size));
  }
  if (embedding == EmbeddingSource::head && (integer_bits(head.weights) == 0 || is_draft()))
    refuse("the embedding is looked up in lm_head, which holds no integers");
  if (!(attention_scale > 0)) refuse("attention_scale must be positive");
  if (attention_softcap < 0 || logits_softcap < 0) refuse("soft caps must not be negative");
}

namespace {

void size_matrix(Matrix& matrix, const MatrixFormat& format, int64_t rows, int64_t cols) {
  if (cols > kMaxCols)
    refuse("a matrix has " + std::to_string(cols) + " input columns; the kernels take at most " +
           std::to_string(kMaxCols));
  matrix.packed = packed_shape(format, rows, cols);
}

void size_layer(LayerWeights& layer, const ModelShape& shape, const LayerFormats& formats) {
  const int64_t hidden = shape.hidden_size, inner = shape.intermediate_size;
  const int64_t query = shape.query_size(), kv = shape.kv_size();
  const int64_t columns = shape.qkv_columns();
  layer.qkv.resize(formats.qkv.size());
  layer.gate_up.resize(formats.gate_up.size());
  if (formats.qkv.size() == 1) {
    size_matrix(layer.qkv[0], formats.qkv[0], query + 2 * kv, columns);
  } else {
    for (size_t i = 0; i < 3; ++i)
      size_matrix(layer.qkv[i], formats.qkv[i], i == 0 ? query : kv, columns);
  }
  size_matrix(layer.o, formats.o, hidden, query);
  if (formats.gate_up.size() == 1) {
    size_matrix(layer.gate_up[0], formats.gate_up[0], 2 * round_up(inner, kPanel), hidden);
  } else {
    for (size_t i = 0; i < 2; ++i) size_matrix(layer.gate_up[i], formats.gate_up[i], inner, hidden);
  }
  size_matrix(layer.down, formats.down, hidden, inner);
}

// Gives every matrix its shape and its data `base` + offset; returns the size of the arena.
int64_t lay_out(Model& model, const uint8_t* base) {
  const ModelShape& shape = model.shape;
  int64_t end = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t offset = end;
    end = round_up(end + bytes, 64);
    return offset;
  };
  if (shape.has_table()) {
    const int64_t element = shape.table_format() == EmbeddingFormat::f32 ? 4 : 2;
    const int64_t table = shape.vocab_size * shape.hidden_size * element;
    const int64_t offset = take(table);
    if (base != nullptr) model.embedding = {base + offset, static_cast<size_t>(table)};
  } else if (shape.embedding == EmbeddingSource::matrix) {
    size_matrix(model.embedding_matrix, shape.embedding_matrix, shape.vocab_size,
                shape.hidden_size);
  }
  size_matrix(model.lm_head, shape.head, shape.head_rows(), shape.hidden_size);
  if (shape.is_draft())
    size_matrix(model.fc, shape.draft.fc, shape.hidden_size, shape.draft.num_features);
  for (size_t i = 0; i < model.layers.size(); ++i)
    size_layer(model.layers[i], shape, shape.formats[i]);
  visit_matrices(model, [&](Matrix& matrix, const std::string&) {
    const int64_t offset = take(packed_bytes(matrix.packed));
    if (base == nullptr) return;
    const auto padded_rows = static_cast<size_t>(matrix.packed.padded_rows);
    matrix.scales.assign(matrix.packed.scaled_rows() ? padded_rows : 0, 0.0f);
    matrix.packed.data = base + offset;
    matrix.packed.scales = matrix.scales.data();
    matrix.loaded = false;
  });
  return end;
}

}  // namespace

int64_t Model::arena_bytes() const {
  Model sketch;
  sketch.shape = shape;
  sketch.layers.resize(shape.layers.size());
  return lay_out(sketch, nullptr);
}

void Model::place(Region region, size_t offset) {
  memory = std::move(region);
  arena_offset = offset;
  layers.resize(shape.layers.size());
  lay_out(*this, arena());
  embedding_loaded = false;
}

void Model::check_complete() const {
  require_loaded(embedding_loaded || !shape.has_table(), "embed");
  require_loaded(!final_norm.empty(), "final_norm");
  require_loaded(!shape.is_draft() || !hidden_norm.empty(), "hidden_norm");
  require_loaded(shape.head_rows() == shape.vocab_size || !target_ids.empty(), "target_ids");
  if (memory.data() == nullptr) require_loaded(false, "lm_head");
  visit_matrices(*this, [](const Matrix& matrix, const std::string& name) {
    require_loaded(matrix.loaded, name);
  });
  for (size_t i = 0; i < layers.size(); ++i) {
    const LayerWeights& layer = layers[i];
    const std::string prefix = "layers." + std::to_string(i) + ".";
    require_loaded(!layer.attn_norm.empty(), prefix + "attn_norm");
    require_loaded(!layer.mlp_norm.empty(), prefix + "mlp_norm");
    require_loaded(!shape.post_norms || !layer.post_attn_norm.empty(), prefix + "post_attn_norm");
    require_loaded(!shape.post_norms || !layer.post_mlp_norm.empty(), prefix + "post_mlp_norm");
    require_loaded(!shape.qk_norm || !layer.q_norm.empty(), prefix + "q_norm");
    require_loaded(!shape.qk_norm || !layer.k_norm.empty(), prefix + "k_norm");
  }
}

}  // namespace trimtab
