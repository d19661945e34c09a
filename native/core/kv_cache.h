// The KV cache: one pool of blocks of 16 tokens, allocated once.
//
//   pool [block][layer][kv head] tile        (a tile: kernels/layer_kernels.h)
//
// Block first: memory is touched, and so taken, in proportion to the tokens. Layer first, the first
// token would take a huge page in every layer, and the first step the time to zero them.
#pragma once

#include <cstdint>

#include "core/memory.h"
#include "kernels/layer_kernels.h"

namespace trimtab {

class KVCache {
 public:
  // Throws std::invalid_argument for a head_dim that is no multiple of 16 or a count below 1,
  // std::runtime_error if the system refuses the memory.
  KVCache(KVFormat format, int64_t head_dim, int64_t num_kv_heads, int64_t num_layers,
          int64_t num_blocks);

  static int64_t bytes_per_block(KVFormat format, int64_t head_dim, int64_t num_kv_heads,
                                 int64_t num_layers);

  KVTile tile() const { return tile_; }
  int64_t num_blocks() const { return num_blocks_; }
  int64_t bytes_per_block() const { return num_layers_ * layer_stride_; }
  int64_t block_stride() const { return bytes_per_block(); }  // from block to block in a layer

  // Tile of block 0 for (layer, kv head); block b lies b * block_stride() bytes further.
  uint8_t* tiles(int64_t layer, int64_t kv_head) const {
    return pool_.data() + layer * layer_stride_ + kv_head * tile_.bytes();
  }

  // The three check every id and throw std::invalid_argument, before anything is touched.
  // Pairs are copied in order.
  void copy_blocks(const int32_t* sources, const int32_t* destinations, int64_t count);
  // data [count][bytes_per_block] = [count][layer][kv head] tile
  void export_blocks(const int32_t* block_ids, int64_t count, uint8_t* data) const;
  void import_blocks(const int32_t* block_ids, int64_t count, const uint8_t* data);

 private:
  void check_ids(const int32_t* block_ids, int64_t count) const;
  uint8_t* block(int64_t id) const { return pool_.data() + id * bytes_per_block(); }

  KVTile tile_;
  int64_t num_layers_;
  int64_t num_blocks_;
  int64_t layer_stride_;  // bytes of one layer in a block
  Region pool_;
};

}  // namespace trimtab
