// What a row starts from: its token's embedding and its position's angles.
#include <algorithm>
#include <cmath>

#include "core/decoder.h"
#include "core/packing.h"

namespace trimtab {

// The scaled row of a token, from wherever the model has its embeddings.
void Decoder::embed_token(int32_t token, float scale, float* out) const {
  const ModelShape& shape = model_.shape;
  if (shape.embedding == EmbeddingSource::other) return embeddings_->embed_token(token, scale, out);
  if (!shape.has_table()) {
    const bool own = shape.embedding == EmbeddingSource::matrix;
    dequantize_row((own ? model_.embedding_matrix : model_.lm_head).packed, token, out);
    layers_.embed(EmbeddingFormat::f32, out, shape.hidden_size, scale, out);
    return;
  }
  const EmbeddingFormat format = shape.table_format();
  const int64_t row_bytes = shape.hidden_size * (format == EmbeddingFormat::f32 ? 4 : 2);
  layers_.embed(format, model_.embedding.data() + token * row_bytes, shape.hidden_size, scale, out);
}

void Decoder::embed(const Phase&, int64_t chunk, int) {
  const float scale = model_.shape.rounded_embedding_scale();
  const int64_t last = std::min(rows_, (chunk + 1) * row_grain_);
  for (int64_t row = chunk * row_grain_; row < last; ++row) {
    embed_token(step_->token_ids[row], scale, residual_.data + row * hidden_stride_);
    find_angles(row);
  }
}

// Cosines and sines of a row's position, for every rope.
void Decoder::find_angles(int64_t row) {
  const ModelShape& shape = model_.shape;
  const int64_t half = shape.head_dim / 2;
  for (size_t r = 0; r < shape.ropes.size(); ++r) {
    const RopeShape& rope = shape.ropes[r];
    float* cosines = cosines_.data + (static_cast<int64_t>(r) * rows_ + row) * half;
    float* sines = sines_.data + (static_cast<int64_t>(r) * rows_ + row) * half;
    for (size_t i = 0; i < rope.inv_freq.size(); ++i) {
      const double angle = step_->positions[row] * rope.inv_freq[i];
      cosines[i] = static_cast<float>(std::cos(angle) * rope.amplitude);
      sines[i] = static_cast<float>(std::sin(angle) * rope.amplitude);
    }
  }
}

}  // namespace trimtab
