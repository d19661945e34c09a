// A model as the decoder runs it: sizes and choices, and packed weights.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/memory.h"
#include "core/thread_pool.h"
#include "kernels/kernels.h"
#include "kernels/layer_kernels.h"

namespace trimtab {

struct RopeShape {
  std::vector<double> inv_freq;  // rotary_dim / 2
  double amplitude = 1.0;
};

struct LayerShape {
  int64_t window = 0;  // 0 = full attention
  int64_t rope = 0;    // index into ModelShape::ropes
};

// In what the matrices of a layer are stored. Projections of the same input are one matrix where
// they are stored alike: then their lists have one format, else one for each.
struct LayerFormats {
  std::vector<MatrixFormat> qkv;  // one, or of q, k, v
  MatrixFormat o;
  std::vector<MatrixFormat> gate_up;  // one, or of gate, up
  MatrixFormat down;
};

// Where the rows of the embedding table are looked up: in a table of floats, in a matrix of its
// own, or in lm_head.
// `other`: in another decoder, unscaled.
enum class EmbeddingSource : int32_t { f32 = 0, bf16 = 1, matrix = 2, head = 3, other = 4 };

// What makes a model a draft head (EAGLE-3, arXiv 2503.01840): its one layer reads, of each row,
// features of a target model, or the hidden state that the layer itself gave for the row before.
//
//   x = fc(features), or the given hidden state
//   q, k, v read [norm(embedding, attn_norm), norm(x, hidden_norm)]
//   the layer goes on from x, or from norm(x, hidden_norm) if norm_before_residual
struct DraftShape {
  int64_t num_features = 0;  // columns of fc; 0: the model is no draft head
  int64_t vocab_size = 0;    // rows of lm_head
  bool norm_before_residual = false;
  MatrixFormat fc;
};

// The numbers of trimtab.models.spec.ModelSpec, and the formats in which it is held.
struct ModelShape {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  std::vector<LayerShape> layers;
  std::vector<RopeShape> ropes;
  double norm_eps = 0;
  double norm_weight_offset = 0;
  bool gelu = false;  // tanh-GELU instead of SiLU
  bool qk_norm = false;
  bool post_norms = false;
  double embedding_scale = 1;
  double attention_scale = 0;
  double attention_softcap = 0;
  double logits_softcap = 0;

  std::vector<LayerFormats> formats;  // one a layer
  MatrixFormat head;
  EmbeddingSource embedding = EmbeddingSource::bf16;
  MatrixFormat embedding_matrix;  // where the source is a matrix of its own
  KVFormat kv_format = KVFormat::bf16;
  DraftShape draft;

  bool is_draft() const { return draft.num_features != 0; }
  int64_t head_rows() const { return is_draft() ? draft.vocab_size : vocab_size; }
  int64_t qkv_columns() const { return is_draft() ? 2 * hidden_size : hidden_size; }
  int64_t query_size() const { return num_heads * head_dim; }
  int64_t kv_size() const { return num_kv_heads * head_dim; }
  int64_t group() const { return num_heads / num_kv_heads; }  // query heads of a kv head
  bool has_table() const {
    return embedding == EmbeddingSource::f32 || embedding == EmbeddingSource::bf16;
  }
  EmbeddingFormat table_format() const {
    return embedding == EmbeddingSource::f32 ? EmbeddingFormat::f32 : EmbeddingFormat::bf16;
  }

  // Gemma's scale is rounded like the model: in bf16, so is the scale.
  float rounded_embedding_scale() const;

  // Throws std::invalid_argument: one line that names what cannot work.
  void check() const;
};

struct Matrix {
  PackedMatrix packed{};  // data lies in Model::memory
  std::vector<float> scales;
  std::vector<float> bias;       // [padded_rows] or empty
  std::vector<int32_t> columns;  // [cols] or empty: column k multiplies input columns[k]
  bool loaded = false;
};

struct LayerWeights {
  std::vector<Matrix> qkv;  // one of the rows of q, k, v heads; or three
  Matrix o;
  std::vector<Matrix> gate_up;  // one: panels of 16 rows alternate gate, up, each padded to a
                                // panel; or two
  Matrix down;
  std::vector<float> attn_norm, mlp_norm, post_attn_norm, post_mlp_norm;  // [hidden]
  std::vector<float> q_norm, k_norm;                                      // [head_dim]
};

// The bytes of all matrices of a model are one piece of memory, the arena: the embedding (table or
// matrix) first, then lm_head, then fc of a draft head, then qkv, o, gate_up, down of each layer,
// each at a multiple of 64 bytes. Its layout follows from the shape alone.
//
//   memory  | skipped (mapped file: its header) | arena | (mapped file: its vectors) |
struct Model {
  ModelShape shape;
  std::vector<LayerWeights> layers;
  std::span<const uint8_t> embedding;  // [vocab][hidden] in shape.table_format(), or empty
  Matrix embedding_matrix;             // where the shape has one
  std::vector<float> final_norm;
  Matrix lm_head;
  Matrix fc;                        // of a draft head, as are the next two
  std::vector<float> hidden_norm;   // [hidden]
  std::vector<int32_t> target_ids;  // [draft vocab] of lm_head's rows; empty: they are the same
  Region memory;
  size_t arena_offset = 0;
  bool embedding_loaded = false;

  // Throws std::invalid_argument for matrices that the kernels do not take.
  int64_t arena_bytes() const;
  // Takes memory that holds an arena (or room for one) at `offset`, and points every matrix into
  // it; scales get their sizes. Nothing counts as loaded yet.
  void place(Region region, size_t offset);
  uint8_t* arena() const { return memory.data() + arena_offset; }

  // Throws std::invalid_argument naming the first tensor that was never loaded.
  void check_complete() const;
};

// Calls visit(matrix, name) for every matrix of a model whose matrices have been sized; the name
// is as in messages, `layers.0.qkv`. ModelType is Model or const Model.
template <typename ModelType, typename Visit>
void visit_matrices(ModelType& model, const Visit& visit) {
  if (model.shape.embedding == EmbeddingSource::matrix) visit(model.embedding_matrix, "embed");
  visit(model.lm_head, "lm_head");
  if (model.shape.is_draft()) visit(model.fc, "fc");
  for (size_t i = 0; i < model.layers.size(); ++i) {
    auto& layer = model.layers[i];
    const std::string prefix = "layers." + std::to_string(i) + ".";
    const char* const qkv[] = {"q", "k", "v"};
    for (size_t part = 0; part < layer.qkv.size(); ++part)
      visit(layer.qkv[part], prefix + (layer.qkv.size() == 1 ? "qkv" : qkv[part]));
    visit(layer.o, prefix + "o");
    for (size_t part = 0; part < layer.gate_up.size(); ++part)
      visit(layer.gate_up[part], prefix + (layer.gate_up.size() == 1 ? "gate_up"
                                           : part == 0               ? "gate"
                                                                     : "up"));
    visit(layer.down, prefix + "down");
  }
}

}  // namespace trimtab
