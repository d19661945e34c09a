#include "core/decoder.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "core/packing.h"

namespace trimtab {
namespace {

// Up to this many rows each thread norms and quantizes the input of a projection for itself: that
// takes less time than a phase.
constexpr int64_t kOwnRows = 4;
// Chunks of a projection are this many rows by as many panels as keep the weights in the L2 cache;
// fewer where there are so few rows that weights are only read, so that a stalled thread holds
// little up.
constexpr int64_t kGemmRows = 128;
constexpr int64_t kGemmBytes = 128 << 10;
constexpr int64_t kFewRows = 16, kFewRowsBytes = 64 << 10;
constexpr int64_t kChunksPerThread = 2;  // at least, where a matrix has them
constexpr int64_t kPanelGranule = 4;     // one micro-kernel's width, and even, as int4 needs
constexpr int64_t kRunTokens = 64;       // of K and V that are written in one chunk: whole blocks
constexpr int64_t kLogitsChunkFloats = 16 << 20;

Model checked(Model model, const Decoder* embeddings) {
  model.shape.check();
  model.check_complete();
  if (model.shape.embedding != EmbeddingSource::other) return model;
  if (embeddings == nullptr || embeddings->model().shape.hidden_size != model.shape.hidden_size ||
      embeddings->model().shape.vocab_size != model.shape.vocab_size)
    throw std::invalid_argument("embeddings of another model: it must have the same sizes");
  return model;
}

}  // namespace

Decoder::Decoder(const KernelTable& kernels, std::shared_ptr<ThreadPool> pool, Model model,
                 int64_t num_blocks, const Decoder* embeddings)
    : gemm_(kernels.gemm),
      layers_(kernels.layers),
      sampling_(kernels.sampling),
      pool_(std::move(pool)),
      model_(checked(std::move(model), embeddings)),
      cache_(model_.shape.kv_format, model_.shape.head_dim, model_.shape.num_kv_heads,
             static_cast<int64_t>(model_.shape.layers.size()), num_blocks),
      embeddings_(embeddings),
      validator_(model_.shape.vocab_size, num_blocks),
      attention_(layers_, model_.shape, pool_->num_threads(), num_blocks),
      sampler_scratch_(pool_->num_threads()),
      hidden_stride_(round_up(model_.shape.hidden_size, 16)),
      qkv_stride_(model_.shape.query_size() + 2 * model_.shape.kv_size()),
      query_stride_(model_.shape.query_size()),
      mlp_stride_(round_up(model_.shape.intermediate_size, 16)),
      vocab_stride_(round_up(model_.shape.vocab_size, 16)) {
  for (const LayerWeights& layer : model_.layers) separate_up_ |= layer.gate_up.size() > 1;
  for (SamplerScratch& scratch : sampler_scratch_) scratch.reserve(model_.shape.vocab_size);
  int64_t longest = hidden_stride_;  // of the rows that are prepared
  visit_matrices(model_, [&](const Matrix& matrix, const std::string&) {
    const PackedMatrix& packed = matrix.packed;
    activation_row_bytes_ =
        std::max(activation_row_bytes_, gemm_.activation_bytes(packed.format, packed.padded_cols));
    activation_row_scales_ = std::max(activation_row_scales_, packed.groups());
    activation_row_starts_ = std::max(activation_row_starts_, activation_starts(packed));
    if (!matrix.columns.empty()) longest = std::max(longest, round_up(packed.cols, 16));
  });
  const int64_t row = longest * 4, data = kOwnRows * activation_row_bytes_;
  const int64_t scales = round_up(kOwnRows * activation_row_scales_ * 4, 64);
  const int64_t starts = round_up(kOwnRows * activation_row_starts_ * 4, 64);
  locals_.resize(pool_->num_threads());
  local_memory_ = Region(locals_.size() * static_cast<size_t>(2 * row + data + 2 * scales + starts),
                         "the threads' working memory");
  uint8_t* memory = local_memory_.data();
  for (Local& local : locals_) {
    local.row = reinterpret_cast<float*>(memory);
    local.ordered = reinterpret_cast<float*>(memory += row);
    local.activations.data = memory += row;
    local.activations.scales = reinterpret_cast<float*>(memory += data);
    local.activations.sums = reinterpret_cast<float*>(memory += scales);
    local.activations.starts = reinterpret_cast<int32_t*>(memory += scales);
    memory += starts;
  }
}

void Decoder::reserve() {
  const ModelShape& shape = model_.shape;
  rows_ = step_->num_rows;
  row_grain_ = std::clamp<int64_t>(rows_ / (8 * pool_->num_threads()), 1, 32);
  logits_chunk_ =
      std::min(step_->num_logits, std::max<int64_t>(1, kLogitsChunkFloats / vocab_stride_));
  residual_.reserve(rows_ * hidden_stride_);
  if (shape.post_norms) hidden_.reserve(rows_ * hidden_stride_);
  qkv_.reserve(rows_ * qkv_stride_);
  attended_.reserve(rows_ * query_stride_);
  mlp_.reserve(rows_ * mlp_stride_);
  if (separate_up_) up_.reserve(rows_ * mlp_stride_);
  const int64_t angles = static_cast<int64_t>(shape.ropes.size()) * rows_ * shape.head_dim / 2;
  cosines_.reserve(angles);
  sines_.reserve(angles);
  logits_.reserve(logits_chunk_ * vocab_stride_);
  if (shape.is_draft()) joined_.reserve(rows_ * 2 * shape.hidden_size);
  if (!model_.target_ids.empty()) spread_.reserve(pool_->num_threads() * vocab_stride_);
  activations_.data = activation_data_.get<uint8_t>(rows_ * activation_row_bytes_);
  activations_.scales = activation_scales_.get<float>(rows_ * activation_row_scales_);
  activations_.sums = activation_sums_.get<float>(rows_ * activation_row_scales_);
  activations_.starts = activation_starts_.get<int32_t>(rows_ * activation_row_starts_);
  runs_.clear();
  for (int64_t seq = 0; seq < step_->num_seqs; ++seq) {
    const int64_t last = step_->seq_starts[seq + 1];
    for (int64_t row = step_->seq_starts[seq]; row < last;) {
      const int64_t end = std::min(last, row + kRunTokens - step_->positions[row] % kRunTokens);
      runs_.push_back({seq, row, end});
      row = end;
    }
  }
}

// ---- the program

void Decoder::add_phase(const Phase& phase, int64_t chunks) {
  phases_.push_back(phase);
  phases_.back().stamp = ++stamp_;
  chunks_.push_back(chunks);
}

void Decoder::add_projection(const Projection& projection) {
  Phase phase{};
  phase.projection = projection;
  phase.run = &Decoder::prepare;
  if (projection.rows > kOwnRows) add_phase(phase, row_chunks(projection.rows));
  const int64_t panels = projection.matrix->packed.padded_rows / kPanel;
  const int64_t width = panels_of_chunk(*projection.matrix, projection.rows);
  phase.run = &Decoder::multiply;
  add_phase(phase, (panels + width - 1) / width * ((projection.rows + kGemmRows - 1) / kGemmRows));
}

// residual += projection, or residual += norm(projection).
void Decoder::add_residual_projection(const Matrix& matrix, const float* input, int64_t stride,
                                      const std::vector<float>& post_norm) {
  const bool normed = model_.shape.post_norms;
  add_projection({&matrix, input, stride, nullptr, nullptr, rows_,
                  normed ? hidden_.data : residual_.data, hidden_stride_,
                  normed ? Epilogue::store : Epilogue::add});
  if (!normed) return;
  Phase phase{};
  phase.run = &Decoder::add_normed;
  phase.norm = &post_norm;
  add_phase(phase, row_chunks(rows_));
}

void Decoder::build_attention(int64_t layer) {
  Phase phase{};
  phase.layer = layer;
  if (attention_.items_are_sequences()) {
    phase.run = &Decoder::attend_sequence;
    add_phase(phase, attention_.num_items());
    return;
  }
  phase.run = &Decoder::rotate;
  add_phase(phase, static_cast<int64_t>(runs_.size()) * model_.shape.num_kv_heads);
  phase.run = &Decoder::attend;
  add_phase(phase, attention_.num_items());
  phase.run = &Decoder::merge;
  add_phase(phase, attention_.num_merges());
}

// Queries, keys and values side by side, from one matrix or three.
void Decoder::build_qkv(const LayerWeights& weights) {
  const bool draft = model_.shape.is_draft();
  float* out = qkv_.data;
  for (const Matrix& matrix : weights.qkv) {
    add_projection({&matrix, draft ? joined_.data : residual_.data,
                    draft ? 2 * model_.shape.hidden_size : hidden_stride_, nullptr,
                    draft ? nullptr : &weights.attn_norm, rows_, out, qkv_stride_,
                    Epilogue::store});
    out += matrix.packed.rows;
  }
}

void Decoder::build_gate_up(const LayerWeights& weights) {
  Projection projection{&weights.gate_up[0], residual_.data, hidden_stride_, nullptr,
                        &weights.mlp_norm,   rows_,          mlp_.data,      mlp_stride_,
                        Epilogue::store};
  if (weights.gate_up.size() == 1) {
    projection.epilogue = model_.shape.gelu ? Epilogue::gated_gelu : Epilogue::gated_silu;
    add_projection(projection);
    return;
  }
  add_projection(projection);
  projection.matrix = &weights.gate_up[1];
  projection.out = up_.data;
  add_projection(projection);
  Phase phase{};
  phase.run = &Decoder::gate;
  add_phase(phase, row_chunks(rows_));
}

void Decoder::build_layer(int64_t layer) {
  const LayerWeights& weights = model_.layers[layer];
  build_qkv(weights);
  build_attention(layer);
  add_residual_projection(weights.o, attended_.data, query_stride_, weights.post_attn_norm);
  build_gate_up(weights);
  add_residual_projection(weights.down, mlp_.data, mlp_stride_, weights.post_mlp_norm);
}

// In parts, so that thousands of rows of a large vocabulary need no more memory than a few.
void Decoder::build_logits() {
  for (int64_t first = 0; first < step_->num_logits; first += logits_chunk_) {
    const int64_t count = std::min(step_->num_logits - first, logits_chunk_);
    add_projection({&model_.lm_head, residual_.data, hidden_stride_, step_->logit_rows + first,
                    &model_.final_norm, count, logits_.data, vocab_stride_, Epilogue::store});
    Phase phase{};
    phase.run = &Decoder::sample;
    phase.first = first;
    add_phase(phase, count);
  }
}

void Decoder::build_program() {
  phases_.clear();
  chunks_.clear();
  Phase phase{};
  if (model_.shape.is_draft()) {
    build_draft_input();
  } else {
    phase.run = &Decoder::embed;
    add_phase(phase, row_chunks(rows_));
  }
  const auto num_layers = static_cast<int64_t>(model_.layers.size());
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    if (step_->features) build_features(layer);
    build_layer(layer);
  }
  if (step_->features) build_features(num_layers);
  build_logits();
  if (step_->num_hidden == 0) return;
  phase.run = &Decoder::give_hidden;
  add_phase(phase, step_->num_hidden);
}

void Decoder::step(const StepInput& step, const StepOutput& out) {
  began_ = timed_ ? ThreadPool::time() : 0;
  validator_.check(step);
  step_ = &step;
  out_ = &out;
  reserve();
  attention_.build(step);
  build_program();
  begin_times();
  pool_->run(
      chunks_.data(), static_cast<int64_t>(chunks_.size()),
      [this](int64_t index, int64_t chunk, int thread) {
        const Phase& phase = phases_[index];
        (this->*phase.run)(phase, chunk, thread);
      },
      timed_ ? phase_began_.data() : nullptr);
}

// ---- what its chunks do

Activations Decoder::activations(const Activations& memory, const Matrix& reader) const {
  Activations view = memory;
  view.row_bytes = gemm_.activation_bytes(reader.packed.format, reader.packed.padded_cols);
  return view;
}

// Rows [begin, end) of a projection's input, in the form that its matrix reads.
void Decoder::prepare_rows(const Projection& projection, int64_t begin, int64_t end,
                           const Local& local, const Activations& out) const {
  const PackedMatrix& packed = projection.matrix->packed;
  const std::vector<int32_t>& columns = projection.matrix->columns;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = projection.input_rows != nullptr ? projection.input_rows[i] : i;
    const float* x = projection.input + row * projection.input_stride;
    if (projection.norm != nullptr) {
      layers_.rms_norm(x, hidden_stride_, 1, model_.shape.hidden_size, projection.norm->data(),
                       static_cast<float>(model_.shape.norm_eps), local.row, hidden_stride_);
      x = local.row;
    }
    if (!columns.empty()) {
      for (size_t k = 0; k < columns.size(); ++k) local.ordered[k] = x[columns[k]];
      x = local.ordered;
    }
    gemm_.prepare(packed, x, projection.input_stride, 1, out, i);
  }
}

void Decoder::prepare(const Phase& phase, int64_t chunk, int thread) {
  const Projection& projection = phase.projection;
  prepare_rows(projection, chunk * row_grain_, std::min(projection.rows, (chunk + 1) * row_grain_),
               locals_[thread], activations(activations_, *projection.matrix));
}

int64_t Decoder::panels_of_chunk(const Matrix& matrix, int64_t rows) const {
  const int64_t panels = matrix.packed.padded_rows / kPanel;
  const int64_t panel_bytes = std::max<int64_t>(1, packed_bytes(matrix.packed) / panels);
  const int64_t bytes = rows <= kFewRows ? kFewRowsBytes : kGemmBytes;
  const int64_t share = panels / (kChunksPerThread * pool_->num_threads());
  return round_up(std::max<int64_t>(1, std::min(bytes / panel_bytes, share)), kPanelGranule);
}

void Decoder::multiply(const Phase& phase, int64_t chunk, int thread) {
  const Projection& projection = phase.projection;
  const Matrix& matrix = *projection.matrix;
  Activations inputs = activations(activations_, matrix);
  if (projection.rows <= kOwnRows) {
    Local& local = locals_[thread];
    inputs = activations(local.activations, matrix);
    if (local.stamp != phase.stamp) {
      local.stamp = phase.stamp;
      add_time(local.preparing,
               [&] { prepare_rows(projection, 0, projection.rows, local, inputs); });
    }
  }
  const GemmOutput output{projection.out, projection.stride,
                          matrix.bias.empty() ? nullptr : matrix.bias.data(), projection.epilogue};
  const int64_t panels = matrix.packed.padded_rows / kPanel;
  const int64_t width = panels_of_chunk(matrix, projection.rows);
  const int64_t tiles_down = (projection.rows + kGemmRows - 1) / kGemmRows;
  const int64_t panel = chunk / tiles_down * width, row = chunk % tiles_down * kGemmRows;
  gemm_.gemm(matrix.packed, inputs, row, std::min(projection.rows, row + kGemmRows), panel,
             std::min(panels, panel + width), output);
}

// Norm per head and rotary embedding of one kv head's queries and key, in place; then K and V into
// the cache.
void Decoder::rotate_run(const RowRun& run, int64_t layer, int64_t head) {
  const ModelShape& shape = model_.shape;
  const LayerWeights& weights = model_.layers[layer];
  const int64_t dim = shape.head_dim, rope = shape.layers[layer].rope;
  const int64_t half = static_cast<int64_t>(shape.ropes[rope].inv_freq.size());
  const float epsilon = static_cast<float>(shape.norm_eps);
  const int32_t* blocks = step_->block_ids + step_->block_starts[run.seq];
  uint8_t* tiles = cache_.tiles(layer, head);
  for (int64_t row = run.first; row < run.last; ++row) {
    const int64_t angle = (rope * rows_ + row) * (dim / 2);
    const auto rotate = [&](float* x, int64_t heads, const std::vector<float>& norm) {
      if (shape.qk_norm) layers_.rms_norm(x, dim, heads, dim, norm.data(), epsilon, x, dim);
      layers_.rope(x, heads, dim, half, cosines_.data + angle, sines_.data + angle);
    };
    float* qkv = qkv_.data + row * qkv_stride_;
    rotate(qkv + head * shape.group() * dim, shape.group(), weights.q_norm);
    float* key = qkv + shape.query_size() + head * dim;
    rotate(key, 1, weights.k_norm);
    const int64_t position = step_->positions[row];
    layers_.write_kv(cache_.tile(), tiles + blocks[position / kBlockTokens] * cache_.block_stride(),
                     position % kBlockTokens, key, key + shape.kv_size());
  }
}

// A block's slots are written by one thread in order: slot 0 clears the rest.
void Decoder::rotate(const Phase& phase, int64_t chunk, int) {
  const int64_t heads = model_.shape.num_kv_heads;
  rotate_run(runs_[chunk / heads], phase.layer, chunk % heads);
}

void Decoder::attend(const Phase& phase, int64_t chunk, int thread) {
  attention_.run_item(attention_arrays(), phase.layer, chunk, thread);
}

void Decoder::merge(const Phase& phase, int64_t chunk, int thread) {
  attention_.run_merge(attention_arrays(), phase.layer, chunk, thread);
}

// Both at once where one thread has all rows of a sequence and kv head.
void Decoder::attend_sequence(const Phase& phase, int64_t chunk, int thread) {
  const int64_t heads = model_.shape.num_kv_heads, seq = chunk / heads;
  const RowRun run{seq, step_->seq_starts[seq], step_->seq_starts[seq + 1]};
  add_time(locals_[thread].rotating, [&] { rotate_run(run, phase.layer, chunk % heads); });
  attend(phase, chunk, thread);
}

// mlp = activation(mlp) * up
void Decoder::gate(const Phase&, int64_t chunk, int) {
  const int64_t last = std::min(rows_, (chunk + 1) * row_grain_);
  for (int64_t row = chunk * row_grain_; row < last; ++row)
    layers_.gate(model_.shape.gelu, up_.data + row * mlp_stride_, model_.shape.intermediate_size,
                 mlp_.data + row * mlp_stride_);
}

// residual += norm(hidden)
void Decoder::add_normed(const Phase& phase, int64_t chunk, int) {
  const int64_t begin = chunk * row_grain_, rows = std::min(rows_ - begin, row_grain_);
  float* hidden = hidden_.data + begin * hidden_stride_;
  layers_.rms_norm(hidden, hidden_stride_, rows, model_.shape.hidden_size, phase.norm->data(),
                   static_cast<float>(model_.shape.norm_eps), hidden, hidden_stride_);
  layers_.add(hidden, hidden_stride_, rows, model_.shape.hidden_size,
              residual_.data + begin * hidden_stride_, hidden_stride_);
}

void Decoder::sample(const Phase& phase, int64_t chunk, int thread) {
  const int64_t vocab = model_.shape.vocab_size, row = phase.first + chunk;
  float* own = logits_.data + chunk * vocab_stride_;
  if (model_.shape.logits_softcap > 0)
    layers_.softcap(own, vocab, static_cast<float>(model_.shape.logits_softcap));
  const float* logits = model_.target_ids.empty() ? own : of_target_ids(own, thread);
  if (out_->logits != nullptr)
    std::memcpy(out_->logits + row * vocab, logits, static_cast<size_t>(vocab) * 4);
  const SampleOutput slots{out_->tokens + row,
                           out_->logprobs + row,
                           out_->top_ids + row * out_->top_width,
                           out_->top_logprobs + row * out_->top_width,
                           out_->top_width,
                           step_->targets != nullptr ? out_->target_logprobs + row : nullptr};
  sample_row(sampling_, logits, vocab, step_->sampling, row,
             step_->targets != nullptr ? step_->targets[row] : -1, sampler_scratch_[thread], slots);
}

void Decoder::give_hidden(const Phase&, int64_t chunk, int thread) {
  const int64_t size = model_.shape.hidden_size;
  float* normed = locals_[thread].row;
  layers_.rms_norm(residual_.data + step_->hidden_rows[chunk] * hidden_stride_, hidden_stride_, 1,
                   size, model_.final_norm.data(), static_cast<float>(model_.shape.norm_eps),
                   normed, hidden_stride_);
  std::memcpy(out_->hidden + chunk * size, normed, static_cast<size_t>(size) * 4);
}

}  // namespace trimtab
