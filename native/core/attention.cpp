#include "core/attention.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace trimtab {
namespace {

// Fewer items than this many for each thread: cut the contexts as well.
constexpr int64_t kItemsPerThread = 4;
// Most memory for partials kept apart; beyond it one thread walks a tile's context alone.
constexpr int64_t kMaxPartialFloats = int64_t{1} << 26;

}  // namespace

AttentionPlan::AttentionPlan(const LayerKernels& kernels, const ModelShape& shape, int num_threads,
                             int64_t num_blocks)
    : kernels_(kernels), shape_(shape), num_threads_(num_threads), locals_(num_threads) {
  const int64_t partial = round_up(PartialAttention::floats(kTileRows, shape.head_dim), 16);
  const int64_t query = kTileRows * shape.head_dim;
  for (Local& local : locals_) {
    local.memory.resize(static_cast<size_t>(query + 2 * partial + 16));
    const auto address = reinterpret_cast<uintptr_t>(local.memory.data());
    local.query = reinterpret_cast<float*>((address + 63) / 64 * 64);
    local.total = local.query + query;
    local.partial = local.total + partial;
    local.positions.resize(kTileRows);
    local.offsets.resize(kTileRows);
  }
  // What a growing context will ask for, so that it need not be asked for then; pages are touched
  // only when they are used.
  if (num_threads == 1) return;
  const int64_t partitions = (num_blocks * kBlockTokens - 1) / kPartitionTokens + 1;
  const int64_t items =
      std::min(kItemsPerThread * num_threads * partitions, kMaxPartialFloats / partial);
  items_.reserve(static_cast<size_t>(items));
  partial_memory_.get<float>(items * partial);
}

void AttentionPlan::build(const StepInput& step) {
  tiles_.clear();
  items_.clear();
  const int64_t group = shape_.group();
  int64_t split_items = 0, most_rows = 0;
  for (int64_t seq = 0; seq < step.num_seqs; ++seq) {
    const int64_t rows = step.seq_starts[seq + 1] - step.seq_starts[seq];
    const int64_t start = step.positions[step.seq_starts[seq]];
    for (int64_t first = 0; first < rows * group; first += kTileRows) {
      const int64_t last = std::min(rows * group, first + kTileRows);
      const int64_t last_position = start + (last - 1) / group;
      tiles_.push_back({seq, first, last, start + first / group, last_position, split_items,
                        last_position / kPartitionTokens + 1});
      split_items += tiles_.back().num_partitions * shape_.num_kv_heads;
      most_rows = std::max(most_rows, last - first);
    }
  }
  one_tile_each_ = static_cast<int64_t>(tiles_.size()) == step.num_seqs;
  const int64_t whole_items = static_cast<int64_t>(tiles_.size()) * shape_.num_kv_heads;
  partial_floats_ = round_up(PartialAttention::floats(most_rows, shape_.head_dim), 16);
  split_ = num_threads_ > 1 && split_items > whole_items &&
           whole_items < kItemsPerThread * num_threads_ &&
           split_items <= kMaxPartialFloats / partial_floats_;
  partials_ = split_ ? partial_memory_.get<float>(split_items * partial_floats_) : nullptr;
  for (int32_t tile = 0; tile < static_cast<int32_t>(tiles_.size()); ++tile)
    for (int32_t head = 0; head < shape_.num_kv_heads; ++head)
      for (int32_t i = 0; i < (split_ ? tiles_[tile].num_partitions : 1); ++i)
        items_.push_back({tile, head, i});
}

bool AttentionPlan::key_range(const Tile& tile, int64_t window, int64_t partition, int64_t& first,
                              int64_t& last) const {
  const int64_t oldest = window > 0 ? std::max<int64_t>(0, tile.first_position - window + 1) : 0;
  first = std::max(partition * kPartitionTokens, oldest);
  last = std::min((partition + 1) * kPartitionTokens, tile.last_position + 1);
  return first < last;
}

AttentionTile AttentionPlan::load_tile(const Arrays& arrays, int64_t layer, const Tile& tile,
                                       int64_t kv_head, Local& local) const {
  const StepInput& step = arrays.step;
  const int64_t group = shape_.group(), dim = shape_.head_dim;
  const float scale = static_cast<float>(shape_.attention_scale);
  const int64_t seq_start = step.seq_starts[tile.seq];
  for (int64_t folded = tile.first; folded < tile.last; ++folded) {
    const int64_t row = seq_start + folded / group;
    const float* source =
        arrays.qkv + row * arrays.qkv_stride + (kv_head * group + folded % group) * dim;
    float* query = local.query + (folded - tile.first) * dim;
    for (int64_t d = 0; d < dim; ++d) query[d] = source[d] * scale;
    local.positions[folded - tile.first] = step.positions[row];
  }
  AttentionTile view;
  view.tile = arrays.cache.tile();
  view.query = local.query;
  view.positions = local.positions.data();
  view.rows = tile.last - tile.first;
  view.window = shape_.layers[layer].window;
  view.softcap = static_cast<float>(shape_.attention_softcap);
  view.pool = arrays.cache.tiles(layer, kv_head);
  view.block_stride = arrays.cache.block_stride();
  view.block_ids = step.block_ids + step.block_starts[tile.seq];
  return view;
}

void AttentionPlan::reset(int64_t rows, const PartialAttention& partial) const {
  std::fill_n(partial.max, rows, -std::numeric_limits<float>::infinity());
  std::fill_n(partial.sum, rows, 0.0f);
  std::fill_n(partial.out, rows * shape_.head_dim, 0.0f);
}

void AttentionPlan::write_out(const Arrays& arrays, const Tile& tile, int64_t kv_head,
                              const PartialAttention& total, Local& local) const {
  const int64_t group = shape_.group(), seq_start = arrays.step.seq_starts[tile.seq];
  for (int64_t folded = tile.first; folded < tile.last; ++folded)
    local.offsets[folded - tile.first] = (seq_start + folded / group) * arrays.out_stride +
                                         (kv_head * group + folded % group) * shape_.head_dim;
  kernels_.finish(tile.last - tile.first, shape_.head_dim, total, arrays.out, local.offsets.data());
}

void AttentionPlan::run_item(const Arrays& arrays, int64_t layer, int64_t index, int thread) {
  Local& local = locals_[thread];
  const Item& item = items_[index];
  const Tile& tile = tiles_[item.tile];
  const int64_t rows = tile.last - tile.first, window = shape_.layers[layer].window;
  int64_t first, last;
  if (split_) {
    if (!key_range(tile, window, item.partition, first, last)) return;
    const AttentionTile view = load_tile(arrays, layer, tile, item.kv_head, local);
    kernels_.attend(view, first, last,
                    PartialAttention::at(partials_ + index * partial_floats_, rows));
    return;
  }
  const AttentionTile view = load_tile(arrays, layer, tile, item.kv_head, local);
  const PartialAttention total = PartialAttention::at(local.total, rows);
  const PartialAttention partial = PartialAttention::at(local.partial, rows);
  reset(rows, total);
  for (int64_t p = 0; p < tile.num_partitions; ++p) {
    if (!key_range(tile, window, p, first, last)) continue;
    kernels_.attend(view, first, last, partial);
    kernels_.merge(rows, shape_.head_dim, partial, total);
  }
  write_out(arrays, tile, item.kv_head, total, local);
}

void AttentionPlan::run_merge(const Arrays& arrays, int64_t layer, int64_t merge, int thread) {
  Local& local = locals_[thread];
  const int64_t heads = shape_.num_kv_heads, kv_head = merge % heads;
  const Tile& tile = tiles_[merge / heads];
  const int64_t rows = tile.last - tile.first, window = shape_.layers[layer].window;
  const PartialAttention total = PartialAttention::at(local.total, rows);
  reset(rows, total);
  const int64_t item = tile.first_partial + kv_head * tile.num_partitions;
  int64_t first, last;
  for (int64_t p = 0; p < tile.num_partitions; ++p)
    if (key_range(tile, window, p, first, last))
      kernels_.merge(rows, shape_.head_dim,
                     PartialAttention::at(partials_ + (item + p) * partial_floats_, rows), total);
  write_out(arrays, tile, kv_head, total, local);
}

}  // namespace trimtab
