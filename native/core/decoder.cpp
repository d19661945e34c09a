#include "core/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace trimtab {
namespace {

// Up to this many rows a projection only reads weights: each thread takes one range of panels.
constexpr int64_t kFewRows = 16;
// Beyond it, tiles of this many rows by as many panels as keep the weights in the L2 cache.
constexpr int64_t kTileGemmRows = 128;
constexpr int64_t kTileGemmBytes = 128 << 10;
constexpr int64_t kPanelGranule = 4;  // one micro-kernel's width, and even, as int4 needs
constexpr int64_t kLogitsChunkFloats = 16 << 20;

Model checked(Model model) {
  model.shape.check();
  model.check_complete();
  return model;
}

}  // namespace

Decoder::Decoder(const KernelTable& kernels, std::shared_ptr<ThreadPool> pool, Model model,
                 int64_t num_blocks)
    : gemm_(kernels.gemm),
      layers_(kernels.layers),
      sampling_(kernels.sampling),
      pool_(std::move(pool)),
      model_(checked(std::move(model))),
      cache_(model_.shape.kv_format, model_.shape.head_dim, model_.shape.num_kv_heads,
             static_cast<int64_t>(model_.shape.layers.size()), num_blocks),
      validator_(model_.shape.vocab_size, num_blocks),
      attention_(layers_, model_.shape, pool_->num_threads(), num_blocks),
      sampler_scratch_(pool_->num_threads()),
      hidden_stride_(round_up(model_.shape.hidden_size, 16)),
      qkv_stride_(model_.shape.query_size() + 2 * model_.shape.kv_size()),
      query_stride_(model_.shape.query_size()),
      mlp_stride_(round_up(model_.shape.intermediate_size, 16)),
      vocab_stride_(round_up(model_.shape.vocab_size, 16)) {
  for (SamplerScratch& scratch : sampler_scratch_) scratch.reserve(model_.shape.vocab_size);
  const LayerWeights& layer = model_.layers[0];
  const Matrix* const readers[] = {&layer.qkv, &layer.o, &layer.gate_up, &layer.down,
                                   &model_.lm_head};
  for (const Matrix* reader : readers) {
    const PackedMatrix& packed = reader->packed;
    activation_row_bytes_ =
        std::max(activation_row_bytes_, gemm_.activation_bytes(packed.format, packed.padded_cols));
    const int64_t groups =
        packed.format == WeightFormat::int4 ? packed.padded_cols / packed.group_size : 1;
    activation_row_scales_ = std::max(activation_row_scales_, groups);
    activation_row_starts_ = std::max(activation_row_starts_, int4_starts(packed.padded_cols));
  }
}

void Decoder::reserve(const StepInput& step) {
  const ModelShape& shape = model_.shape;
  rows_ = step.num_rows;
  logits_chunk_ =
      std::min(step.num_logits, std::max<int64_t>(1, kLogitsChunkFloats / vocab_stride_));
  residual_.reserve(rows_ * hidden_stride_);
  hidden_.reserve(rows_ * hidden_stride_);
  qkv_.reserve(rows_ * qkv_stride_);
  attended_.reserve(rows_ * query_stride_);
  mlp_.reserve(rows_ * mlp_stride_);
  const int64_t angles = static_cast<int64_t>(shape.ropes.size()) * rows_ * shape.head_dim / 2;
  cosines_.reserve(angles);
  sines_.reserve(angles);
  logits_.reserve(logits_chunk_ * vocab_stride_);
  activations_.data = activation_data_.get<uint8_t>(rows_ * activation_row_bytes_);
  activations_.scales = activation_scales_.get<float>(rows_ * activation_row_scales_);
  activations_.starts = activation_starts_.get<int32_t>(rows_ * activation_row_starts_);
}

Activations Decoder::activations(const Matrix& reader) const {
  Activations view = activations_;
  view.row_bytes = gemm_.activation_bytes(reader.packed.format, reader.packed.padded_cols);
  return view;
}

void Decoder::prepare(const float* x, int64_t stride, int64_t rows, int64_t first_row,
                      const Matrix& reader) const {
  const PackedMatrix& packed = reader.packed;
  gemm_.prepare(packed.format, packed.group_size, x, stride, rows, packed.cols, activations(reader),
                first_row);
}

void Decoder::embed_rows(Team& team, const StepInput& step) {
  const ModelShape& shape = model_.shape;
  const EmbeddingFormat format = shape.embedding_format();
  const int64_t row_bytes = shape.hidden_size * (format == EmbeddingFormat::f32 ? 4 : 2);
  const int64_t half = shape.head_dim / 2;
  team.for_static(rows_, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      layers_.embed(format, model_.embedding.data() + step.token_ids[row] * row_bytes,
                    shape.hidden_size, shape.rounded_embedding_scale(),
                    residual_.data + row * hidden_stride_);
      for (size_t r = 0; r < shape.ropes.size(); ++r) {
        const RopeShape& rope = shape.ropes[r];
        float* cosines = cosines_.data + (static_cast<int64_t>(r) * rows_ + row) * half;
        float* sines = sines_.data + (static_cast<int64_t>(r) * rows_ + row) * half;
        for (size_t i = 0; i < rope.inv_freq.size(); ++i) {
          const double angle = step.positions[row] * rope.inv_freq[i];
          cosines[i] = static_cast<float>(std::cos(angle) * rope.amplitude);
          sines[i] = static_cast<float>(std::sin(angle) * rope.amplitude);
        }
      }
    }
  });
}

void Decoder::norm_rows(Team& team, const std::vector<float>& norm, const Matrix& reader) {
  const ModelShape& shape = model_.shape;
  team.for_static(rows_, 1, [&](int64_t begin, int64_t end) {
    float* hidden = hidden_.data + begin * hidden_stride_;
    layers_.rms_norm(residual_.data + begin * hidden_stride_, hidden_stride_, end - begin,
                     shape.hidden_size, norm.data(), static_cast<float>(shape.norm_eps), hidden,
                     hidden_stride_);
    prepare(hidden, hidden_stride_, end - begin, begin, reader);
  });
}

// residual += norm(hidden)
void Decoder::add_normed(Team& team, const std::vector<float>& norm) {
  const ModelShape& shape = model_.shape;
  team.for_static(rows_, 1, [&](int64_t begin, int64_t end) {
    float* hidden = hidden_.data + begin * hidden_stride_;
    layers_.rms_norm(hidden, hidden_stride_, end - begin, shape.hidden_size, norm.data(),
                     static_cast<float>(shape.norm_eps), hidden, hidden_stride_);
    layers_.add(hidden, hidden_stride_, end - begin, shape.hidden_size,
                residual_.data + begin * hidden_stride_, hidden_stride_);
  });
}

void Decoder::prepare_rows(Team& team, const float* x, int64_t stride, const Matrix& reader) {
  team.for_static(rows_, 1, [&](int64_t begin, int64_t end) {
    prepare(x + begin * stride, stride, end - begin, begin, reader);
  });
}

void Decoder::project(Team& team, const Matrix& matrix, int64_t rows, float* out, int64_t stride,
                      Epilogue epilogue) {
  const PackedMatrix& packed = matrix.packed;
  const Activations inputs = activations(matrix);
  const GemmOutput output{out, stride, matrix.bias.empty() ? nullptr : matrix.bias.data(),
                          epilogue};
  const int64_t panels = packed.padded_rows / kPanel;
  if (rows <= kFewRows) {
    team.for_static(panels, kPanelGranule, [&](int64_t begin, int64_t end) {
      gemm_.gemm(packed, inputs, 0, rows, begin, end, output);
    });
    return;
  }
  const int64_t panel_bytes = std::max<int64_t>(1, packed_bytes(packed) / panels);
  const int64_t width = round_up(std::max<int64_t>(1, kTileGemmBytes / panel_bytes), kPanelGranule);
  const int64_t tiles_across = (panels + width - 1) / width;
  const int64_t tiles_down = (rows + kTileGemmRows - 1) / kTileGemmRows;
  team.for_dynamic(tiles_across * tiles_down, [&](int64_t tile) {
    const int64_t panel = tile / tiles_down * width, row = tile % tiles_down * kTileGemmRows;
    gemm_.gemm(packed, inputs, row, std::min(rows, row + kTileGemmRows), panel,
               std::min(panels, panel + width), output);
  });
}

// residual += projection, or hidden = projection where a norm comes between.
void Decoder::project_residual(Team& team, const Matrix& matrix) {
  if (model_.shape.post_norms)
    project(team, matrix, rows_, hidden_.data, hidden_stride_, Epilogue::store);
  else
    project(team, matrix, rows_, residual_.data, hidden_stride_, Epilogue::add);
}

// Norm per head and rotary embedding of q in place; the same of k, then K and V into the cache. A
// (sequence, kv head) is one thread's, so that its blocks are cleared and filled in order.
void Decoder::rotate_and_write(Team& team, const StepInput& step, int64_t layer) {
  const ModelShape& shape = model_.shape;
  const LayerWeights& weights = model_.layers[layer];
  const int64_t dim = shape.head_dim, half_stride = dim / 2;
  const int64_t rope = shape.layers[layer].rope;
  const int64_t half = static_cast<int64_t>(shape.ropes[rope].inv_freq.size());
  const float epsilon = static_cast<float>(shape.norm_eps);
  const auto rotate = [&](float* x, int64_t heads, int64_t row, const std::vector<float>& norm) {
    if (shape.qk_norm) layers_.rms_norm(x, dim, heads, dim, norm.data(), epsilon, x, dim);
    const int64_t angle = (rope * rows_ + row) * half_stride;
    layers_.rope(x, heads, dim, half, cosines_.data + angle, sines_.data + angle);
  };
  team.for_static(rows_, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      rotate(qkv_.data + row * qkv_stride_, shape.num_heads, row, weights.q_norm);
  });
  team.for_dynamic(step.num_seqs * shape.num_kv_heads, [&](int64_t item) {
    const int64_t seq = item / shape.num_kv_heads, head = item % shape.num_kv_heads;
    const int32_t* blocks = step.block_ids + step.block_starts[seq];
    uint8_t* tiles = cache_.tiles(layer, head);
    for (int64_t row = step.seq_starts[seq]; row < step.seq_starts[seq + 1]; ++row) {
      float* key = qkv_.data + row * qkv_stride_ + shape.query_size() + head * dim;
      rotate(key, 1, row, weights.k_norm);
      const int64_t position = step.positions[row];
      layers_.write_kv(cache_.tile(),
                       tiles + blocks[position / kBlockTokens] * cache_.block_stride(),
                       position % kBlockTokens, key, key + shape.kv_size());
    }
  });
}

void Decoder::run_layer(Team& team, const StepInput& step, int64_t layer) {
  const LayerWeights& weights = model_.layers[layer];
  norm_rows(team, weights.attn_norm, weights.qkv);
  team.barrier();
  project(team, weights.qkv, rows_, qkv_.data, qkv_stride_, Epilogue::store);
  team.barrier();
  rotate_and_write(team, step, layer);
  team.barrier();
  attention_.run(team, step, cache_, layer, qkv_.data, qkv_stride_, attended_.data, query_stride_);
  team.barrier();
  prepare_rows(team, attended_.data, query_stride_, weights.o);
  team.barrier();
  project_residual(team, weights.o);
  team.barrier();
  if (model_.shape.post_norms) add_normed(team, weights.post_attn_norm);
  norm_rows(team, weights.mlp_norm, weights.gate_up);
  team.barrier();
  project(team, weights.gate_up, rows_, mlp_.data, mlp_stride_,
          model_.shape.gelu ? Epilogue::gated_gelu : Epilogue::gated_silu);
  team.barrier();
  prepare_rows(team, mlp_.data, mlp_stride_, weights.down);
  team.barrier();
  project_residual(team, weights.down);
  team.barrier();
  if (model_.shape.post_norms) add_normed(team, weights.post_mlp_norm);
}

void Decoder::normalize_logit_rows(Team& team, const StepInput& step, int64_t first, int64_t last) {
  const ModelShape& shape = model_.shape;
  team.for_static(last - first, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* hidden = hidden_.data + i * hidden_stride_;
      layers_.rms_norm(residual_.data + step.logit_rows[first + i] * hidden_stride_, hidden_stride_,
                       1, shape.hidden_size, model_.final_norm.data(),
                       static_cast<float>(shape.norm_eps), hidden, hidden_stride_);
      prepare(hidden, hidden_stride_, 1, i, model_.lm_head);
    }
  });
}

void Decoder::sample_rows(Team& team, const StepInput& step, const StepOutput& out, int64_t first,
                          int64_t last) {
  const int64_t vocab = model_.shape.vocab_size;
  team.for_dynamic(last - first, [&](int64_t i) {
    const int64_t row = first + i;
    float* logits = logits_.data + i * vocab_stride_;
    if (model_.shape.logits_softcap > 0)
      layers_.softcap(logits, vocab, static_cast<float>(model_.shape.logits_softcap));
    if (out.logits != nullptr)
      std::memcpy(out.logits + row * vocab, logits, static_cast<size_t>(vocab) * 4);
    const SampleOutput slots{out.tokens + row,
                             out.logprobs + row,
                             out.top_ids + row * out.top_width,
                             out.top_logprobs + row * out.top_width,
                             out.top_width,
                             step.targets != nullptr ? out.target_logprobs + row : nullptr};
    sample_row(sampling_, logits, vocab, step.sampling, row,
               step.targets != nullptr ? step.targets[row] : -1, sampler_scratch_[team.thread()],
               slots);
  });
}

// In chunks, so that thousands of rows of a large vocabulary need no more memory than a few.
void Decoder::run_logits(Team& team, const StepInput& step, const StepOutput& out) {
  for (int64_t first = 0; first < step.num_logits; first += logits_chunk_) {
    const int64_t last = std::min(step.num_logits, first + logits_chunk_);
    team.barrier();
    normalize_logit_rows(team, step, first, last);
    team.barrier();
    project(team, model_.lm_head, last - first, logits_.data, vocab_stride_, Epilogue::store);
    team.barrier();
    sample_rows(team, step, out, first, last);
  }
}

void Decoder::step(const StepInput& step, const StepOutput& out) {
  validator_.check(step);
  reserve(step);
  attention_.build(step);
  pool_->run([&](Team& team) {
    embed_rows(team, step);
    for (size_t layer = 0; layer < model_.layers.size(); ++layer)
      run_layer(team, step, static_cast<int64_t>(layer));
    run_logits(team, step, out);
  });
}

}  // namespace trimtab
