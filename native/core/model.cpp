#include "core/model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

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

float widen_half(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t rest = static_cast<uint32_t>(bits & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &rest, 4);
  value *= 0x1p112f;  // moves the exponent bias, and makes denormals normal
  uint32_t result;
  std::memcpy(&result, &value, 4);
  if ((bits & 0x7c00) == 0x7c00) result = rest | 0x7f800000;  // infinity, NaN
  result |= sign;
  std::memcpy(&value, &result, 4);
  return value;
}

uint16_t round_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace

float ModelShape::rounded_embedding_scale() const {
  const float scale = static_cast<float>(embedding_scale);
  if (embedding_format() == EmbeddingFormat::f32) return scale;
  const uint32_t bits = static_cast<uint32_t>(round_bf16(scale)) << 16;
  float rounded;
  std::memcpy(&rounded, &bits, 4);
  return rounded;
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
  if (!(attention_scale > 0)) refuse("attention_scale must be positive");
  if (attention_softcap < 0 || logits_softcap < 0) refuse("soft caps must not be negative");
}

void widen(const StoredMatrix& source, int64_t row, float* dst) {
  const int64_t first = row * source.cols;
  if (source.type == StoredType::f32) {
    std::memcpy(dst, static_cast<const float*>(source.data) + first,
                static_cast<size_t>(source.cols) * 4);
    return;
  }
  const uint16_t* bits = static_cast<const uint16_t*>(source.data) + first;
  if (source.type == StoredType::f16) {
    for (int64_t i = 0; i < source.cols; ++i) dst[i] = widen_half(bits[i]);
  } else {
    for (int64_t i = 0; i < source.cols; ++i) {
      const uint32_t wide = static_cast<uint32_t>(bits[i]) << 16;
      std::memcpy(dst + i, &wide, 4);
    }
  }
}

namespace {

constexpr int64_t kPieceBytes = int64_t{32} << 20;  // of the source, between two calls of `between`

int64_t embedding_element(EmbeddingFormat format) { return format == EmbeddingFormat::f32 ? 4 : 2; }

// Rows of a piece, in units of `granule` rows.
int64_t rows_of_a_piece(const StoredMatrix& source, int64_t granule) {
  const int64_t row_bytes = source.cols * (source.type == StoredType::f32 ? 4 : 2);
  return std::max<int64_t>(1, kPieceBytes / (granule * row_bytes));
}

// Part and row of every packed row; part -1 is a row of zeros.
struct RowPlace {
  int32_t part;
  int64_t row;
};

std::vector<RowPlace> place_rows(const std::vector<StoredMatrix>& parts, RowOrder order) {
  std::vector<RowPlace> places;
  if (order == RowOrder::concatenated) {
    for (size_t part = 0; part < parts.size(); ++part)
      for (int64_t row = 0; row < parts[part].rows; ++row)
        places.push_back({static_cast<int32_t>(part), row});
    return places;
  }
  const int64_t rows = parts[0].rows;
  for (int64_t panel = 0; panel < rows; panel += kPanel)
    for (size_t part = 0; part < parts.size(); ++part)
      for (int64_t row = panel; row < panel + kPanel; ++row)
        places.push_back({row < rows ? static_cast<int32_t>(part) : -1, row});
  return places;
}

void check_parts(const std::vector<StoredMatrix>& parts, const std::vector<const float*>& biases,
                 RowOrder order) {
  if (parts.empty()) refuse("a matrix needs at least one part");
  for (const StoredMatrix& part : parts) {
    if (part.rows < 1 || part.cols != parts[0].cols)
      refuse("parts of one matrix differ in their number of columns");
    if (order == RowOrder::interleaved_panels && part.rows != parts[0].rows)
      refuse("gate and up differ in their number of rows");
  }
  if (!biases.empty() && biases.size() != parts.size()) refuse("one bias for each part, or none");
}

}  // namespace

void pack_matrix(ThreadPool& pool, const GemmKernels& kernels, Model& model, Matrix& matrix,
                 const std::vector<StoredMatrix>& parts, const std::vector<const float*>& biases,
                 RowOrder order, const BetweenPieces& between) {
  check_parts(parts, biases, order);
  const std::vector<RowPlace> places = place_rows(parts, order);
  const int64_t cols = parts[0].cols;
  if (static_cast<int64_t>(places.size()) != matrix.packed.rows || cols != matrix.packed.cols)
    refuse("the parts do not fill their matrix");
  matrix.bias.clear();
  if (!biases.empty()) {
    matrix.bias.assign(static_cast<size_t>(matrix.packed.padded_rows), 0.0f);
    for (size_t n = 0; n < places.size(); ++n)
      if (places[n].part >= 0) matrix.bias[n] = biases[places[n].part][places[n].row];
  }
  uint8_t* data = model.arena() + (matrix.packed.data - model.arena());
  constexpr int64_t kPanels = 2;  // at a time: what every format accepts
  const int64_t items = (matrix.packed.padded_rows / kPanel + kPanels - 1) / kPanels;
  const int64_t piece = rows_of_a_piece(parts[0], kPanels * kPanel);
  std::vector<std::vector<float>> rows(
      pool.num_threads(), std::vector<float>(static_cast<size_t>(kPanels * kPanel * cols)));
  const auto pack_item = [&](float* source, int64_t item) {
    const int64_t panel0 = item * kPanels;
    const int64_t panel1 = std::min(matrix.packed.padded_rows / kPanel, panel0 + kPanels);
    for (int64_t n = panel0 * kPanel; n < panel1 * kPanel; ++n) {
      float* row = source + (n - panel0 * kPanel) * cols;
      const bool stored = n < static_cast<int64_t>(places.size()) && places[n].part >= 0;
      if (stored)
        widen(parts[places[n].part], places[n].row, row);
      else
        std::memset(row, 0, static_cast<size_t>(cols) * 4);
    }
    kernels.pack(matrix.packed, data, matrix.scales.data(), source, panel0, panel1);
  };
  for (int64_t first = 0; first < items; first += piece) {
    pool.for_each(std::min(piece, items - first), 1, [&](int64_t item, int64_t, int thread) {
      pack_item(rows[thread].data(), first + item);
    });
    between();
  }
  matrix.loaded = true;
}

void load_embedding(ThreadPool& pool, Model& model, const StoredMatrix& source,
                    const BetweenPieces& between) {
  const EmbeddingFormat format = model.shape.embedding_format();
  const int64_t cols = source.cols;
  const int64_t element = embedding_element(format);
  if (source.rows * cols * element != static_cast<int64_t>(model.embedding.size()))
    refuse("the embedding table has another size");
  uint8_t* table = model.arena();
  std::vector<std::vector<float>> scratch(pool.num_threads(), std::vector<float>(cols));
  const auto convert = [&](float* row, int64_t n) {
    uint8_t* dst = table + n * cols * element;
    if (format == EmbeddingFormat::f32) {
      widen(source, n, reinterpret_cast<float*>(dst));
      return;
    }
    widen(source, n, row);
    for (int64_t i = 0; i < cols; ++i) reinterpret_cast<uint16_t*>(dst)[i] = round_bf16(row[i]);
  };
  const int64_t piece = rows_of_a_piece(source, 1);
  for (int64_t first = 0; first < source.rows; first += piece) {
    pool.for_each(std::min(piece, source.rows - first), 64,
                  [&](int64_t begin, int64_t end, int thread) {
                    for (int64_t n = begin; n < end; ++n)
                      convert(scratch[thread].data(), first + n);
                  });
    between();
  }
  model.embedding_loaded = true;
}

namespace {

void size_matrix(Matrix& matrix, WeightFormat format, int32_t group_size, int64_t rows,
                 int64_t cols) {
  if (cols > kMaxCols)
    refuse("a matrix has " + std::to_string(cols) + " input columns; the kernels take at most " +
           std::to_string(kMaxCols));
  matrix.packed = packed_shape(format, group_size, rows, cols);
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
  const int64_t table =
      shape.vocab_size * shape.hidden_size * embedding_element(shape.embedding_format());
  const int64_t table_offset = take(table);
  if (base != nullptr) model.embedding = {base + table_offset, static_cast<size_t>(table)};
  const auto place = [&](Matrix& matrix, WeightFormat format, int32_t group_size, int64_t rows,
                         int64_t cols) {
    size_matrix(matrix, format, group_size, rows, cols);
    const int64_t offset = take(packed_bytes(matrix.packed));
    if (base == nullptr) return;
    const auto padded_rows = static_cast<size_t>(matrix.packed.padded_rows);
    matrix.scales.assign(matrix.packed.scaled_rows() ? padded_rows : 0, 0.0f);
    matrix.packed.data = base + offset;
    matrix.packed.scales = matrix.scales.data();
    matrix.loaded = false;
  };
  const auto add = [&](Matrix& matrix, WeightFormat format, int64_t rows, int64_t cols) {
    place(matrix, format, shape.group_size, rows, cols);
  };
  place(model.lm_head, shape.head_format(), shape.head_group_size(), shape.vocab_size,
        shape.hidden_size);
  for (LayerWeights& layer : model.layers) {
    add(layer.qkv, shape.weights, shape.query_size() + 2 * shape.kv_size(), shape.hidden_size);
    add(layer.o, shape.weights, shape.hidden_size, shape.query_size());
    add(layer.gate_up, shape.weights, 2 * round_up(shape.intermediate_size, kPanel),
        shape.hidden_size);
    add(layer.down, shape.weights, shape.hidden_size, shape.intermediate_size);
  }
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
  require_loaded(embedding_loaded, "embed");
  require_loaded(!final_norm.empty(), "final_norm");
  require_loaded(lm_head.loaded, "lm_head");
  for (size_t i = 0; i < layers.size(); ++i) {
    const LayerWeights& layer = layers[i];
    const std::string prefix = "layers." + std::to_string(i) + ".";
    require_loaded(layer.qkv.loaded, prefix + "qkv");
    require_loaded(layer.o.loaded, prefix + "o");
    require_loaded(layer.gate_up.loaded, prefix + "gate_up");
    require_loaded(layer.down.loaded, prefix + "down");
    require_loaded(!layer.attn_norm.empty(), prefix + "attn_norm");
    require_loaded(!layer.mlp_norm.empty(), prefix + "mlp_norm");
    require_loaded(!shape.post_norms || !layer.post_attn_norm.empty(), prefix + "post_attn_norm");
    require_loaded(!shape.post_norms || !layer.post_mlp_norm.empty(), prefix + "post_mlp_norm");
    require_loaded(!shape.qk_norm || !layer.q_norm.empty(), prefix + "q_norm");
    require_loaded(!shape.qk_norm || !layer.k_norm.empty(), prefix + "k_norm");
  }
}

}  // namespace trimtab
