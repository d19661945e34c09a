// A model as the decoder runs it: sizes and choices, and packed weights.
#pragma once

#include <cstdint>
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
  PackedMatrix packed{};
  Region data;
  std::vector<float> scales;
  std::vector<int32_t> sums;
  std::vector<float> bias;  // [padded_rows] or empty

  bool loaded() const { return packed.data != nullptr; }
};

struct LayerWeights {
  Matrix qkv;  // rows: q heads, k heads, v heads
  Matrix o;
  Matrix gate_up;  // panels of 16 rows alternate gate, up; each padded to a panel
  Matrix down;
  std::vector<float> attn_norm, mlp_norm, post_attn_norm, post_mlp_norm;  // [hidden]
  std::vector<float> q_norm, k_norm;                                      // [head_dim]
};

struct Model {
  ModelShape shape;
  std::vector<LayerWeights> layers;
  Region embedding;  // [vocab][hidden] in shape.embedding_format()
  std::vector<float> final_norm;
  Matrix lm_head;

  // Throws std::invalid_argument naming the first tensor that was never loaded.
  void check_complete() const;
  int64_t weight_bytes() const;
};

// Which stored row becomes which row of a packed matrix.
enum class RowOrder { concatenated, interleaved_panels };

// Packs the parts into one matrix, panel by panel, on all threads; scratch is a few rows of f32 a
// thread. `biases` is empty or holds one array [rows] a part. Throws std::invalid_argument if the
// parts do not fit together.
Matrix pack_matrix(ThreadPool& pool, const GemmKernels& kernels, WeightFormat format,
                   int32_t group_size, const std::vector<StoredMatrix>& parts,
                   const std::vector<const float*>& biases, RowOrder order);

// The embedding table in `format`, converted row by row on all threads.
Region load_embedding(ThreadPool& pool, EmbeddingFormat format, const StoredMatrix& source);

}  // namespace trimtab
