// Paged attention of one step, in pieces that any thread can run.
//
// The query rows of a sequence that share a kv head are folded (row-major, then head of the group)
// and cut into tiles of up to 32. A tile's context is walked in partitions of 512 absolute
// positions, each with its own running softmax, merged in ascending order: the same arithmetic
// whether one thread walks them all (many tiles) or each partition is an item of its own (few
// tiles, long contexts).
#pragma once

#include <cstdint>
#include <vector>

#include "core/kv_cache.h"
#include "core/model.h"
#include "core/step.h"

namespace trimtab {

class AttentionPlan {
 public:
  // No context is longer than `num_blocks` blocks: memory for partitions is set aside for that.
  AttentionPlan(const LayerKernels& kernels, const ModelShape& shape, int num_threads,
                int64_t num_blocks);

  // What every layer of a step works on. `qkv` [rows][qkv_stride] holds the rotated queries, `out`
  // [rows][out_stride] gets the attended heads.
  struct Arrays {
    const StepInput& step;
    const KVCache& cache;
    const float* qkv;
    int64_t qkv_stride;
    float* out;
    int64_t out_stride;
  };

  // Tiles, and whether partitions are items. Same for every layer.
  void build(const StepInput& step);

  // Items of a layer, to be run in any order once K and V of the step are in the cache; then, if
  // there are any, its merges.
  int64_t num_items() const { return static_cast<int64_t>(items_.size()); }
  int64_t num_merges() const {
    return split_ ? static_cast<int64_t>(tiles_.size()) * shape_.num_kv_heads : 0;
  }
  void run_item(const Arrays& arrays, int64_t layer, int64_t item, int thread);
  void run_merge(const Arrays& arrays, int64_t layer, int64_t merge, int thread);

  // True if item i is all rows of sequence i / num_kv_heads for kv head i % num_kv_heads.
  bool items_are_sequences() const { return !split_ && one_tile_each_; }

 private:
  struct Tile {
    int64_t seq;
    int64_t first, last;     // folded rows of the sequence: row * group + head
    int64_t first_position;  // of the first row
    int64_t last_position;   // of the last row
    int64_t first_partial;   // split only: index of its first item, kv head 0
    int64_t num_partitions;
  };
  struct Item {
    int32_t tile;
    int32_t kv_head;
    int32_t partition;
  };
  // One thread's working memory.
  struct Local {
    std::vector<float> memory;
    float* query;
    float* total;
    float* partial;
    std::vector<int32_t> positions;
    std::vector<int64_t> offsets;
  };

  AttentionTile load_tile(const Arrays& arrays, int64_t layer, const Tile& tile, int64_t kv_head,
                          Local& local) const;
  // Key range of `partition` that some row of the tile can see; false if there is none.
  bool key_range(const Tile& tile, int64_t window, int64_t partition, int64_t& first,
                 int64_t& last) const;
  void reset(int64_t rows, const PartialAttention& partial) const;
  void write_out(const Arrays& arrays, const Tile& tile, int64_t kv_head,
                 const PartialAttention& total, Local& local) const;

  const LayerKernels& kernels_;
  const ModelShape& shape_;
  int num_threads_;
  bool split_ = false;
  bool one_tile_each_ = false;
  std::vector<Tile> tiles_;
  std::vector<Item> items_;  // split: (tile, kv head, partition); else (tile, kv head)
  std::vector<Local> locals_;
  Scratch partial_memory_;
  float* partials_ = nullptr;   // split only: [items][partial_floats_]
  int64_t partial_floats_ = 0;  // of one item
};

}  // namespace trimtab
