// A model as the decoder runs it: sizes and choices, and packed weights.
#pragma once

#include <cstdint>
#include <functional>
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

  WeightFormat weights = WeightFormat::bf16;
  int32_t group_size = 64;
  KVFormat kv_format = KVFormat::bf16;

  int64_t query_size() const { return num_heads * head_dim; }
  int64_t kv_size() const { return num_kv_heads * head_dim; }
  int64_t group() const { return num_heads / num_kv_heads; }  // query heads of a kv head
  // int4 would cost the logits more than it saves: the head is int8 then.
  WeightFormat head_format() const {
    return weights == WeightFormat::int4 ? WeightFormat::int8 : weights;
  }
  int32_t head_group_size() const { return weights == WeightFormat::int4 ? 0 : group_size; }
  // The embedding table is only looked up, so it stays bf16 unless everything is f32.
  EmbeddingFormat embedding_format() const {
    return weights == WeightFormat::f32 ? EmbeddingFormat::f32 : EmbeddingFormat::bf16;
  }

  // Gemma's scale is rounded like the model: in bf16, so is the scale.
  float rounded_embedding_scale() const;

  // Throws std::invalid_argument: one line that names what cannot work.
  void check() const;
};

enum class StoredType { f32, f16, bf16 };

// A row-major matrix [rows][cols] somewhere in memory, only read while it is being loaded.
struct StoredMatrix {
  const void* data;
  StoredType type;
  int64_t rows, cols;
};

// dst [cols] = the row as float32, exactly
void widen(const StoredMatrix& source, int64_t row, float* dst);

struct Matrix {
  PackedMatrix packed{};  // data lies in Model::memory
  std::vector<float> scales;
  std::vector<float> bias;  // [padded_rows] or empty
  bool loaded = false;
};

struct LayerWeights {
  Matrix qkv;  // rows: q heads, k heads, v heads
  Matrix o;
  Matrix gate_up;  // panels of 16 rows alternate gate, up; each padded to a panel
  Matrix down;
  std::vector<float> attn_norm, mlp_norm, post_attn_norm, post_mlp_norm;  // [hidden]
  std::vector<float> q_norm, k_norm;                                      // [head_dim]
};

// The bytes of all matrices of a model are one piece of memory, the arena: the embedding table
// first, then lm_head, then qkv, o, gate_up, down of each layer, each at a multiple of 64 bytes.
// Its layout follows from the shape alone.
//
//   memory  | skipped (mapped file: its header) | arena | (mapped file: its vectors) |
struct Model {
  ModelShape shape;
  std::vector<LayerWeights> layers;
  std::span<const uint8_t> embedding;  // [vocab][hidden] in shape.embedding_format()
  std::vector<float> final_norm;
  Matrix lm_head;
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

// Which stored row becomes which row of a packed matrix.
enum class RowOrder { concatenated, interleaved_panels };

// Called between pieces of a long conversion, when what has been read of the source is done with.
using BetweenPieces = std::function<void()>;

// Packs the parts into a matrix of a placed model, panel by panel, on all threads; scratch is a few
// rows of f32 a thread. `biases` is empty or holds one array [rows] a part. Throws
// std::invalid_argument if the parts do not fit together or into the matrix.
void pack_matrix(ThreadPool& pool, const GemmKernels& kernels, Model& model, Matrix& matrix,
                 const std::vector<StoredMatrix>& parts, const std::vector<const float*>& biases,
                 RowOrder order, const BetweenPieces& between);

// The embedding table of a placed model, converted row by row on all threads.
void load_embedding(ThreadPool& pool, Model& model, const StoredMatrix& source,
                    const BetweenPieces& between);

}  // namespace trimtab
