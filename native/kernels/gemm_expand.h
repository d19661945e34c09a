// Formats whose weights are expanded, a block of K at a time, to what other tiles multiply: int5
// and int6 to int8 in groups, fp8 to f32.
#pragma once

#include "kernels/gemm_groups.h"

namespace trimtab::TRIMTAB_ISA {

constexpr int64_t kExpandedColumns = 256;  // of int5 and int6
constexpr int64_t kFp8Columns = 128;

// Of groups of 16 with the longest header: 192 bytes.
constexpr int64_t kExpandedBytes = kGroupPanels / 2 * (kExpandedColumns / 16) * (192 + 32 * 16);

// The 128 weights of a quad of a pair of panels, q + 128.
TRIMTAB_INLINE void expand_quad5(const uint8_t* __restrict packed, uint8_t* __restrict out) {
  const uint8_t* high = packed + 64;
  for (int chunk = 0; chunk < 8; ++chunk) {
    const uint8_t* low = packed + chunk % 4 * 16;
    for (int i = 0; i < 16; ++i) {
      const int nibble = chunk < 4 ? low[i] & 15 : low[i] >> 4;
      out[chunk * 16 + i] =
          static_cast<uint8_t>((nibble | (high[i] >> chunk & 1) << 4) + (128 - 16));
    }
  }
}

TRIMTAB_INLINE void expand_quad6(const uint8_t* __restrict packed, uint8_t* __restrict out) {
  const uint8_t* high = packed + 64;
  for (int chunk = 0; chunk < 4; ++chunk) {
    const uint8_t* low = packed + chunk % 2 * 32;
    for (int i = 0; i < 32; ++i) {
      const int nibble = chunk < 2 ? low[i] & 15 : low[i] >> 4;
      out[chunk * 32 + i] =
          static_cast<uint8_t>((nibble | (high[i] >> (2 * chunk) & 3) << 4) + (128 - 32));
    }
  }
}

// The groups of a tile of one pair of panels, to blocks of int8 with the same headers.
inline void expand_to_int8(const GroupTile& tile, uint8_t* out) {
  const uint8_t* packed = tile.weights;
  const bool five = tile.w->format == WeightFormat::int5;
  const int64_t quad_bytes = five ? 80 : 96;
  for (int64_t g = 0; g < tile.groups; ++g) {
    std::memcpy(out, packed, static_cast<size_t>(tile.header_bytes));
    const uint8_t* from = packed + tile.header_bytes;
    uint8_t* to = out + tile.header_bytes;
    for (int64_t q = 0; q < tile.group_size / 4; ++q) {
      prefetch(from + kPrefetchBytes);
      prefetch(from + kPrefetchBytes + 64);
      five ? expand_quad5(from, to) : expand_quad6(from, to);
      from += quad_bytes;
      to += 128;
    }
    packed += tile.block_bytes;
    out += tile.header_bytes + 32 * tile.group_size;
  }
}

// One group of a panel of fp8 to f32: out [g][16] = weight * scale, rounded once. The bits of a
// float8 e4m3, moved by 7, are those of the f16 that is 2^-8 times as large, denormals included.
inline void expand_fp8(const uint8_t* block, int64_t group_size, float* out) {
  const F32x16 scale = mul(load(reinterpret_cast<const float*>(block)), set1(256.0f));
  const uint8_t* weights = block + 64;
  for (int64_t k = 0; k < group_size; ++k) {
    uint16_t bits[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const int value = weights[k * kLanes + i];
      bits[i] = static_cast<uint16_t>((value & 0x80) << 8 | (value & 0x7f) << 7);
    }
    prefetch(weights + k * kLanes + kPrefetchBytes);
    store(out + k * kLanes, mul(load_f16(bits), scale));
  }
}

}  // namespace trimtab::TRIMTAB_ISA
