#include "core/model.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

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

void size_matrix(Matrix& matrix, WeightFormat format, int32_t group_size, int64_t rows,
                 int64_t cols) {
  if (cols > kMaxCols)
    refuse("a matrix has " + std::to_string(cols) + " input columns; the kernels take at most " +
           std::to_string(kMaxCols));
  PackedMatrix& packed = matrix.packed;
  packed = packed_shape(format, group_size, rows, cols);
  if (format == WeightFormat::int8) {
    matrix.scales.assign(static_cast<size_t>(packed.padded_rows), 0.0f);
    matrix.sums.assign(static_cast<size_t>(packed.padded_rows), 0);
  }
  matrix.data = Region(static_cast<size_t>(packed_bytes(packed)), "weights");
  packed.data = matrix.data.data();
  packed.scales = matrix.scales.data();
  packed.sums = matrix.sums.data();
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

Matrix pack_matrix(ThreadPool& pool, const GemmKernels& kernels, WeightFormat format,
                   int32_t group_size, const std::vector<StoredMatrix>& parts,
                   const std::vector<const float*>& biases, RowOrder order) {
  check_parts(parts, biases, order);
  const std::vector<RowPlace> places = place_rows(parts, order);
  const int64_t cols = parts[0].cols;
  Matrix matrix;
  size_matrix(matrix, format, group_size, static_cast<int64_t>(places.size()), cols);
  if (!biases.empty()) {
    matrix.bias.assign(static_cast<size_t>(matrix.packed.padded_rows), 0.0f);
    for (size_t n = 0; n < places.size(); ++n)
      if (places[n].part >= 0) matrix.bias[n] = biases[places[n].part][places[n].row];
  }
  constexpr int64_t kPanels = 2;  // at a time: what every format accepts
  const int64_t panels = matrix.packed.padded_rows / kPanel;
  std::vector<std::vector<float>> rows(
      pool.num_threads(), std::vector<float>(static_cast<size_t>(kPanels * kPanel * cols)));
  pool.run([&](Team& team) {
    float* source = rows[team.thread()].data();
    team.for_dynamic((panels + kPanels - 1) / kPanels, [&](int64_t item) {
      const int64_t panel0 = item * kPanels;
      const int64_t panel1 = std::min(panels, panel0 + kPanels);
      for (int64_t n = panel0 * kPanel; n < panel1 * kPanel; ++n) {
        float* row = source + (n - panel0 * kPanel) * cols;
        const bool stored = n < static_cast<int64_t>(places.size()) && places[n].part >= 0;
        if (stored)
          widen(parts[places[n].part], places[n].row, row);
        else
          std::memset(row, 0, static_cast<size_t>(cols) * 4);
      }
      kernels.pack(matrix.packed, matrix.data.data(), matrix.scales.data(), matrix.sums.data(),
                   source, panel0, panel1);
    });
  });
  return matrix;
}

Region load_embedding(ThreadPool& pool, EmbeddingFormat format, const StoredMatrix& source) {
  const int64_t cols = source.cols;
  const int64_t element = format == EmbeddingFormat::f32 ? 4 : 2;
  Region table(static_cast<size_t>(source.rows * cols * element), "the embedding table");
  std::vector<std::vector<float>> scratch(pool.num_threads(), std::vector<float>(cols));
  pool.run([&](Team& team) {
    float* row = scratch[team.thread()].data();
    team.for_static(source.rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        uint8_t* dst = table.data() + n * cols * element;
        if (format == EmbeddingFormat::f32) {
          widen(source, n, reinterpret_cast<float*>(dst));
          continue;
        }
        widen(source, n, row);
        for (int64_t i = 0; i < cols; ++i) reinterpret_cast<uint16_t*>(dst)[i] = round_bf16(row[i]);
      }
    });
  });
  return table;
}

void Model::check_complete() const {
  require_loaded(embedding.data() != nullptr, "embed");
  require_loaded(!final_norm.empty(), "final_norm");
  require_loaded(lm_head.loaded(), "lm_head");
  for (size_t i = 0; i < layers.size(); ++i) {
    const LayerWeights& layer = layers[i];
    const std::string prefix = "layers." + std::to_string(i) + ".";
    require_loaded(layer.qkv.loaded(), prefix + "qkv");
    require_loaded(layer.o.loaded(), prefix + "o");
    require_loaded(layer.gate_up.loaded(), prefix + "gate_up");
    require_loaded(layer.down.loaded(), prefix + "down");
    require_loaded(!layer.attn_norm.empty(), prefix + "attn_norm");
    require_loaded(!layer.mlp_norm.empty(), prefix + "mlp_norm");
    require_loaded(!shape.post_norms || !layer.post_attn_norm.empty(), prefix + "post_attn_norm");
    require_loaded(!shape.post_norms || !layer.post_mlp_norm.empty(), prefix + "post_mlp_norm");
    require_loaded(!shape.qk_norm || !layer.q_norm.empty(), prefix + "q_norm");
    require_loaded(!shape.qk_norm || !layer.k_norm.empty(), prefix + "k_norm");
  }
}

int64_t Model::weight_bytes() const {
  int64_t bytes = static_cast<int64_t>(embedding.size() + lm_head.data.size());
  for (const LayerWeights& layer : layers)
    for (const Matrix* matrix : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
      bytes += static_cast<int64_t>(matrix->data.size());
  return bytes;
}

}  // namespace trimtab
