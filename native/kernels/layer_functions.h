// The functions behind LayerKernels, one declaration each; kernels/layer_table.cpp collects them.
#pragma once

#include "kernels/layer_kernels.h"
#include "kernels/simd.h"

namespace trimtab::TRIMTAB_ISA {

void embed(EmbeddingFormat format, const void* row, int64_t cols, float scale, float* out);
void rms_norm(const float* x, int64_t x_stride, int64_t rows, int64_t cols, const float* weight,
              float epsilon, float* out, int64_t out_stride);
void add_rows(const float* x, int64_t x_stride, int64_t rows, int64_t cols, float* sum,
              int64_t sum_stride);
void rope(float* x, int64_t heads, int64_t head_dim, int64_t half, const float* cosines,
          const float* sines);
void gate(bool gelu, const float* up, int64_t count, float* x);
void softcap(float* x, int64_t count, float cap);
void write_kv(KVTile tile, uint8_t* data, int64_t slot, const float* key, const float* value);
void attend(const AttentionTile& tile, int64_t first_key, int64_t last_key,
            const PartialAttention& partial);
void merge(int64_t rows, int64_t head_dim, const PartialAttention& partial,
           const PartialAttention& total);
void finish(int64_t rows, int64_t head_dim, const PartialAttention& total, float* out,
            const int64_t* offsets);

}  // namespace trimtab::TRIMTAB_ISA
