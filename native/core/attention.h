// Paged attention of one step, spread over the threads.
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
#include "core/thread_pool.h"

namespace trimtab {

class AttentionPlan {
 public:
  // No context is longer than `num_blocks` blocks: memory for partitions is set aside for that.
  AttentionPlan(const LayerKernels& kernels, const ModelShape& shape, int num_threads,
                int64_t num_blocks);

  // Before the region: tiles, and whether partitions are items. Same for every layer.
  void build(const StepInput& step);

  // What the threads do for one layer. `qkv` [rows][qkv_stride] holds the rotated queries, `out`
  // [rows][out_stride] gets the attended heads. K and V of the step must be in the cache. Contains
  // a barrier if partitions are items; ends without one.
  void run(Team& team, const StepInput& step, const KVCache& cache, int64_t layer, const float* qkv,
           int64_t qkv_stride, float* out, int64_t out_stride);

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

  AttentionTile load_tile(const StepInput& step, const KVCache& cache, int64_t layer,
                          const Tile& tile, int64_t kv_head, const float* qkv, int64_t qkv_stride,
                          Local& local) const;
  // Key range of `partition` that some row of the tile can see; false if there is none.
  bool key_range(const Tile& tile, int64_t window, int64_t partition, int64_t& first,
                 int64_t& last) const;
  void reset(int64_t rows, const PartialAttention& partial) const;
  void write_out(const Tile& tile, int64_t seq_start, int64_t kv_head,
                 const PartialAttention& total, float* out, int64_t out_stride, Local& local) const;

  const LayerKernels& kernels_;
  const ModelShape& shape_;
  int num_threads_;
  bool split_ = false;
  std::vector<Tile> tiles_;
  std::vector<Item> items_;  // split: (tile, kv head, partition); else (tile, kv head)
  std::vector<Local> locals_;
  Scratch partial_memory_;
  float* partials_ = nullptr;   // split only: [items][partial_floats_]
  int64_t partial_floats_ = 0;  // of one item
};

}  // namespace trimtab
