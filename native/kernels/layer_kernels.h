// Everything of a transformer layer that is not a matrix product: embedding, norms, rotary
// embedding, the KV cache's tiles, attention. One table for each ISA path, like GemmKernels.
//
// The law holds here too: what comes out for a row depends on that row's inputs and its absolute
// position, never on the other rows of a call.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/isa_namespace.h"

// Inlined always: a copy compiled with one path's instructions must never serve another path.
#define TRIMTAB_SHARED inline __attribute__((always_inline))

namespace trimtab {

enum class KVFormat : int32_t { f32 = 0, bf16 = 1, int8 = 2 };

constexpr int64_t kBlockTokens = 16;       // tokens of a KV block
constexpr int64_t kPartitionTokens = 512;  // keys that are attended to before partials are merged
constexpr int64_t kTileRows = 32;          // most query rows of one attention call

// The K and V of 16 tokens for one (layer, kv head), D = head_dim, a multiple of 16:
//
//   f32   K [D][16]         V [16][D]
//   bf16  K [D/2][16][2]    V [16/2][D][2]
//   int8  K [D][16]         V [16][D]         then f32 K scale [16], V scale [16]
//
// Value = stored * scale of its token, scale = absmax / 127 of the token's head.
struct KVTile {
  KVFormat format;
  int64_t head_dim;

  TRIMTAB_SHARED int64_t element_bytes() const {
    return format == KVFormat::f32 ? 4 : format == KVFormat::bf16 ? 2 : 1;
  }
  TRIMTAB_SHARED int64_t half_bytes() const { return kBlockTokens * head_dim * element_bytes(); }
  TRIMTAB_SHARED int64_t bytes() const {
    return 2 * half_bytes() + (format == KVFormat::int8 ? 2 * kBlockTokens * 4 : 0);
  }
  TRIMTAB_SHARED const uint8_t* values(const uint8_t* tile) const { return tile + half_bytes(); }
  TRIMTAB_SHARED uint8_t* values(uint8_t* tile) const { return tile + half_bytes(); }
  TRIMTAB_SHARED const float* key_scales(const uint8_t* tile) const {
    return reinterpret_cast<const float*>(tile + 2 * half_bytes());
  }
  TRIMTAB_SHARED float* key_scales(uint8_t* tile) const {
    return reinterpret_cast<float*>(tile + 2 * half_bytes());
  }
};

// A partial softmax of `rows` query rows: attention = out / sum, `max` the largest score so far.
// In memory: [rows] max, [rows] sum, [rows][head_dim] out.
struct PartialAttention {
  float* max;
  float* sum;
  float* out;

  TRIMTAB_SHARED static int64_t floats(int64_t rows, int64_t head_dim) {
    return rows * (head_dim + 2);
  }
  TRIMTAB_SHARED static PartialAttention at(float* memory, int64_t rows) {
    return {memory, memory + rows, memory + 2 * rows};
  }
};

// Rows of one sequence and one kv head: query rows x the heads of the group, folded.
struct AttentionTile {
  KVTile tile;
  const float* query;        // [rows][head_dim], already multiplied by the attention scale
  const int32_t* positions;  // [rows] absolute
  int64_t rows;              // 1 .. kTileRows
  int64_t window;            // 0 = full
  float softcap;             // 0 = off

  // Tile of block b of the sequence: pool + block_ids[b] * block_stride
  const uint8_t* pool;
  int64_t block_stride;
  const int32_t* block_ids;
};

enum class EmbeddingFormat : int32_t { f32 = 0, bf16 = 1 };

struct LayerKernels {
  // out [cols] = row [cols] * scale
  void (*embed)(EmbeddingFormat format, const void* row, int64_t cols, float scale, float* out);

  // out = x / rms(x) * weight, each of `rows` rows over `cols`; out may be x
  void (*rms_norm)(const float* x, int64_t x_stride, int64_t rows, int64_t cols,
                   const float* weight, float epsilon, float* out, int64_t out_stride);
  // sum[r][c] += x[r][c]
  void (*add)(const float* x, int64_t x_stride, int64_t rows, int64_t cols, float* sum,
              int64_t sum_stride);

  // Rotates `heads` heads of one row in place: pair (x[i], x[i + half]), i < half, by (cosines[i],
  // sines[i]).
  void (*rope)(float* x, int64_t heads, int64_t head_dim, int64_t half, const float* cosines,
               const float* sines);

  // Writes one token's K and V [head_dim] into slot 0..15 of a tile. Slot 0 clears the rest of the
  // tile first, so that what an earlier owner left there is never read. A value that is not finite
  // is kept from the rows that may not see it and makes NaN of those that do.
  void (*write_kv)(KVTile tile, uint8_t* data, int64_t slot, const float* key, const float* value);

  // Partial attention of every row over the keys of absolute positions [first_key, last_key),
  // a range inside one partition; keys that a row may not see are masked. A row that sees none
  // gets max -inf, sum 0, out 0.
  void (*attend)(const AttentionTile& tile, int64_t first_key, int64_t last_key,
                 const PartialAttention& partial);
  // total <- total joined with partial; partitions must come in ascending order
  void (*merge)(int64_t rows, int64_t head_dim, const PartialAttention& partial,
                const PartialAttention& total);
  // out[r] = total.out[r] / total.sum[r], rows to out + offsets[r]
  void (*finish)(int64_t rows, int64_t head_dim, const PartialAttention& total, float* out,
                 const int64_t* offsets);

  // x = activation(x) * up, of `count` values; the activation is SiLU or tanh-GELU
  void (*gate)(bool gelu, const float* up, int64_t count, float* x);

  // x = cap * tanh(x / cap)
  void (*softcap)(float* x, int64_t count, float cap);
};

#if defined(TRIMTAB_ISA)
namespace TRIMTAB_ISA {
LayerKernels layer_kernels();
}  // namespace TRIMTAB_ISA
#endif

}  // namespace trimtab
