// What a draft head does that no other model does: see DraftShape.
#include <algorithm>
#include <cstring>
#include <limits>

#include "core/decoder.h"

namespace trimtab {

// In place of the embedding phase.
void Decoder::build_draft_input() {
  Phase phase{};
  phase.run = &Decoder::embed_draft;
  add_phase(phase, row_chunks(rows_));
  if (step_->input_size != model_.shape.draft.num_features) return;
  add_projection({&model_.fc, step_->inputs, step_->input_size, nullptr, nullptr, rows_,
                  residual_.data, hidden_stride_, Epilogue::store});
  phase.run = &Decoder::join_inputs;
  add_phase(phase, row_chunks(rows_));
}

// The first half of what q, k and v read; given hidden states are all of the second half, too.
void Decoder::embed_draft(const Phase&, int64_t chunk, int thread) {
  const ModelShape& shape = model_.shape;
  const int64_t size = shape.hidden_size;
  const bool given = step_->input_size != shape.draft.num_features;
  float* embedding = locals_[thread].row;
  const int64_t last = std::min(rows_, (chunk + 1) * row_grain_);
  for (int64_t row = chunk * row_grain_; row < last; ++row) {
    embed_token(step_->token_ids[row], 1.0f, embedding);
    layers_.rms_norm(embedding, hidden_stride_, 1, size, model_.layers[0].attn_norm.data(),
                     static_cast<float>(shape.norm_eps), joined_.data + row * 2 * size, 2 * size);
    find_angles(row);
    if (!given) continue;
    std::memcpy(residual_.data + row * hidden_stride_, step_->inputs + row * size,
                static_cast<size_t>(size) * 4);
    join_input(row);
  }
}

void Decoder::join_inputs(const Phase&, int64_t chunk, int) {
  const int64_t last = std::min(rows_, (chunk + 1) * row_grain_);
  for (int64_t row = chunk * row_grain_; row < last; ++row) join_input(row);
}

void Decoder::join_input(int64_t row) {
  const ModelShape& shape = model_.shape;
  const int64_t size = shape.hidden_size;
  float* residual = residual_.data + row * hidden_stride_;
  float* normed = joined_.data + (2 * row + 1) * size;
  layers_.rms_norm(residual, hidden_stride_, 1, size, model_.hidden_norm.data(),
                   static_cast<float>(shape.norm_eps), normed, size);
  if (shape.draft.norm_before_residual)
    std::memcpy(residual, normed, static_cast<size_t>(size) * 4);
}

// Logits by the target's ids, so that a draft is chosen with the noise that the target's own choice
// has; impossible where the head has no row.
const float* Decoder::of_target_ids(const float* draft_logits, int thread) {
  float* logits = spread_.data + thread * vocab_stride_;
  std::fill_n(logits, model_.shape.vocab_size, -std::numeric_limits<float>::infinity());
  for (size_t i = 0; i < model_.target_ids.size(); ++i)
    logits[model_.target_ids[i]] = draft_logits[i];
  return logits;
}

}  // namespace trimtab
