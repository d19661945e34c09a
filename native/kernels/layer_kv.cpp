// Writing tokens into the tiles of the KV cache. Layouts: kernels/layer_kernels.h.
#include "kernels/layer_functions.h"

namespace trimtab::TRIMTAB_ISA {
namespace {

constexpr float kSmallest = 1e-30f;  // a head below this is stored as zeros

void write_f32(int64_t dim, uint8_t* keys, uint8_t* values, int64_t slot, const float* key,
               const float* value) {
  float* k = reinterpret_cast<float*>(keys) + slot;
  float* v = reinterpret_cast<float*>(values) + slot * dim;
  for (int64_t d = 0; d < dim; ++d) k[d * kBlockTokens] = key[d];
  std::memcpy(v, value, static_cast<size_t>(dim) * 4);
}

void write_bf16(int64_t dim, uint8_t* keys, uint8_t* values, int64_t slot, const float* key,
                const float* value) {
  uint16_t* k = reinterpret_cast<uint16_t*>(keys) + slot * 2;
  uint16_t* v = reinterpret_cast<uint16_t*>(values) + slot / 2 * 2 * dim + slot % 2;
  uint16_t lanes[kLanes];
  for (int64_t d = 0; d < dim; d += kLanes) {
    store_bf16(lanes, load(key + d));
    for (int i = 0; i < kLanes; i += 2)
      std::memcpy(k + (d + i) / 2 * 2 * kBlockTokens, lanes + i, 4);
    store_bf16(lanes, load(value + d));
    for (int i = 0; i < kLanes; ++i) v[(d + i) * 2] = lanes[i];
  }
}

float largest_magnitude(int64_t dim, const float* x) {
  F32x16 largest = zero_f32();
  for (int64_t d = 0; d < dim; d += kLanes) largest = max(largest, abs(load(x + d)));
  return reduce_max(largest);
}

void write_int8(int64_t dim, uint8_t* keys, uint8_t* values, float* scales, int64_t slot,
                const float* key, const float* value) {
  uint8_t* k = keys + slot;
  int8_t* v = reinterpret_cast<int8_t*>(values) + slot * dim;
  const float key_largest = largest_magnitude(dim, key);
  const float value_largest = largest_magnitude(dim, value);
  const F32x16 key_factor = set1(key_largest < kSmallest ? 0.0f : 127.0f / key_largest);
  const F32x16 value_factor = set1(value_largest < kSmallest ? 0.0f : 127.0f / value_largest);
  scales[slot] = key_largest / 127.0f;
  scales[kBlockTokens + slot] = value_largest / 127.0f;
  int8_t lanes[kLanes];
  for (int64_t d = 0; d < dim; d += kLanes) {
    store_s8(lanes, to_i32(mul(load(key + d), key_factor)));
    for (int i = 0; i < kLanes; ++i) k[(d + i) * kBlockTokens] = static_cast<uint8_t>(lanes[i]);
    store_s8(v + d, to_i32(mul(load(value + d), value_factor)));
  }
}

bool all_finite(int64_t dim, const float* x) {
  F32x16 sum = zero_f32();  // of zeros, unless there is an infinity or a NaN
  for (int64_t d = 0; d < dim; d += kLanes) sum = fma(load(x + d), zero_f32(), sum);
  return reduce_add(sum) == 0.0f;
}

// Masked keys still multiply their values by a weight of zero, so a value that is not finite would
// reach rows that may not see it. Its key says so instead: every row that sees it becomes NaN.
void poison(KVTile tile, uint8_t* data, int64_t slot) {
  const int64_t dim = tile.head_dim;
  uint8_t* values = tile.values(data);
  switch (tile.format) {
    case KVFormat::f32:
      reinterpret_cast<float*>(data)[slot] = __builtin_nanf("");
      std::memset(values + slot * dim * 4, 0, static_cast<size_t>(dim) * 4);
      return;
    case KVFormat::bf16: {
      uint16_t* v = reinterpret_cast<uint16_t*>(values) + slot / 2 * 2 * dim + slot % 2;
      reinterpret_cast<uint16_t*>(data)[slot * 2] = 0x7fc0;
      for (int64_t d = 0; d < dim; ++d) v[d * 2] = 0;
      return;
    }
    case KVFormat::int8:
      tile.key_scales(data)[slot] = __builtin_nanf("");
      tile.key_scales(data)[kBlockTokens + slot] = 0.0f;
  }
}

void write_formatted(KVTile tile, uint8_t* data, int64_t slot, const float* key,
                     const float* value) {
  const int64_t dim = tile.head_dim;
  uint8_t* values = tile.values(data);
  switch (tile.format) {
    case KVFormat::f32:
      return write_f32(dim, data, values, slot, key, value);
    case KVFormat::bf16:
      return write_bf16(dim, data, values, slot, key, value);
    case KVFormat::int8:
      return write_int8(dim, data, values, tile.key_scales(data), slot, key, value);
  }
}

}  // namespace

void write_kv(KVTile tile, uint8_t* data, int64_t slot, const float* key, const float* value) {
  if (slot == 0) std::memset(data, 0, static_cast<size_t>(tile.bytes()));
  write_formatted(tile, data, slot, key, value);
  if (!all_finite(tile.head_dim, value)) poison(tile, data, slot);
}

}  // namespace trimtab::TRIMTAB_ISA
