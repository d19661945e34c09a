#include "core/kv_cache.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace trimtab {

int64_t KVCache::bytes_per_block(KVFormat format, int64_t head_dim, int64_t num_kv_heads,
                                 int64_t num_layers) {
  return KVTile{format, head_dim}.bytes() * num_kv_heads * num_layers;
}

KVCache::KVCache(KVFormat format, int64_t head_dim, int64_t num_kv_heads, int64_t num_layers,
                 int64_t num_blocks)
    : tile_{format, head_dim}, num_layers_(num_layers), num_blocks_(num_blocks) {
  if (head_dim < 16 || head_dim % 16 != 0)
    throw std::invalid_argument("head_dim=" + std::to_string(head_dim) +
                                ": the CPU executor needs a multiple of 16");
  if (num_kv_heads < 1 || num_layers < 1 || num_blocks < 1)
    throw std::invalid_argument("the KV cache needs at least one head, one layer and one block");
  layer_stride_ = tile_.bytes() * num_kv_heads;
  if (num_blocks > (int64_t{1} << 46) / bytes_per_block())
    throw std::invalid_argument("num_blocks=" + std::to_string(num_blocks) + ": too many");
  pool_ = Region(static_cast<size_t>(num_blocks * bytes_per_block()), "the KV cache");
}

void KVCache::check_ids(const int32_t* block_ids, int64_t count) const {
  for (int64_t i = 0; i < count; ++i)
    if (block_ids[i] < 0 || block_ids[i] >= num_blocks_)
      throw std::invalid_argument("block id " + std::to_string(block_ids[i]) + " is outside [0, " +
                                  std::to_string(num_blocks_) + ")");
}

void KVCache::copy_blocks(const int32_t* sources, const int32_t* destinations, int64_t count) {
  check_ids(sources, count);
  check_ids(destinations, count);
  for (int64_t i = 0; i < count; ++i)
    std::memmove(block(destinations[i]), block(sources[i]), static_cast<size_t>(bytes_per_block()));
}

void KVCache::export_blocks(const int32_t* block_ids, int64_t count, uint8_t* data) const {
  check_ids(block_ids, count);
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(data + i * bytes_per_block(), block(block_ids[i]),
                static_cast<size_t>(bytes_per_block()));
}

void KVCache::import_blocks(const int32_t* block_ids, int64_t count, const uint8_t* data) {
  check_ids(block_ids, count);
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(block(block_ids[i]), data + i * bytes_per_block(),
                static_cast<size_t>(bytes_per_block()));
}

}  // namespace trimtab
