// Register tiles of int4. Within a group the sums are integers and exact; they start at
// -8 * (sum of the group's activations), so that stored nibbles (weight + 8) need no correction.
// Then, in ascending order of groups, one fma a group: y += float(sum) * (weight scale * activation
// scale).
//
// A few rows read the packed nibbles straight from memory, two panels at a time. Many rows have
// them unpacked once for a block of K, one panel at a time, by unpack_int4:
//
//   packed    [pair][group] { f16 scale[32]; u8 nibble[g/4][16][4] }   64 + 16 g bytes a block
//   unpacked  [panel][group] { f32 scale[16]; u8 weight[g/4][16][4] }  the same
#pragma once

#include "kernels/gemm_tiles.h"
#include "kernels/simd.h"

namespace trimtab::TRIMTAB_ISA {

#if defined(TRIMTAB_KERNELS_AVX512)
constexpr int kPackedMaxRows = 8;
constexpr int packed_panels(int rows) { return rows <= 4 ? 4 : 2; }
constexpr int kUnpackedMaxRows = 12;
constexpr int unpacked_panels(int) { return 2; }
#else
constexpr int kPackedMaxRows = 2;
constexpr int packed_panels(int) { return 2; }
constexpr int kUnpackedMaxRows = 6;
constexpr int unpacked_panels(int) { return 1; }
#endif

constexpr int64_t kInt4BlockColumns = 512;  // columns unpacked at a time
constexpr int64_t kScaleBytes = 64;
constexpr int64_t int4_block_bytes(int64_t group_size) { return kScaleBytes + 16 * group_size; }

// Largest for groups of 32.
constexpr int64_t kUnpackedBytes = kGroupPanels * (kInt4BlockColumns / 32) * int4_block_bytes(32);

struct Int4Tile {
  const uint8_t* weights;  // first block of the first panel (unpacked) or pair of panels (packed)
  int64_t stride;          // bytes between panels (unpacked) or pairs (packed)
  const uint8_t* activations;
  int64_t row_bytes;
  const float* scales;         // activation scales of the first row and group
  const int32_t* sums;         // activation sums, likewise
  int64_t activation_groups;   // groups in a row of scales and sums
  int64_t groups, group_size;  // to multiply
  float* out;                  // [row][kSumStride], the tile's first panel
};

template <int P, bool kUnpacked>
TRIMTAB_INLINE void load_u4(const uint8_t* quad, int64_t stride, Bytes64* w) {
  if constexpr (kUnpacked) {
    for (int p = 0; p < P; ++p) w[p] = load_bytes(quad + p * stride);
  } else {
    for (int p = 0; p < P; p += 2) {
      Bytes64 pair = load_bytes(quad + p / 2 * stride);
      w[p] = low_nibbles(pair);
      w[p + 1] = high_nibbles(pair);
    }
  }
}

template <int P, bool kUnpacked>
TRIMTAB_INLINE void load_scales(const uint8_t* block, int64_t stride, F32x16* scales) {
  for (int p = 0; p < P; ++p) {
    if constexpr (kUnpacked) {
      scales[p] = load(reinterpret_cast<const float*>(block + p * stride));
    } else {
      const uint8_t* pair = block + p / 2 * stride + p % 2 * 32;
      scales[p] = load_f16(reinterpret_cast<const uint16_t*>(pair));
    }
  }
}

template <int R, int P, bool kUnpacked>
void multiply_int4(const Int4Tile& tile) {
  const int quads = static_cast<int>(tile.group_size / 4);
  const int chunk = quads < kU4Quads ? quads : kU4Quads;
  const uint8_t* block = tile.weights;
  const uint8_t* activations = tile.activations;
  for (int64_t g = 0; g < tile.groups; ++g) {
    I32x16 totals[R][P];
    for (int r = 0; r < R; ++r) {
      I32x16 start = set1(-8 * tile.sums[r * tile.activation_groups + g]);
      for (int p = 0; p < P; ++p) totals[r][p] = start;
    }
    const uint8_t* quad = block + kScaleBytes;
    for (int first = 0; first < quads; first += chunk) {
      U4Sums sums[R][P];
      for (int r = 0; r < R; ++r) {
        for (int p = 0; p < P; ++p) sums[r][p] = zero_u4();
      }
      for (int q = 0; q < chunk; ++q) {
        Bytes64 w[P];
        load_u4<P, kUnpacked>(quad, tile.stride, w);
        if (R == 1 && !kUnpacked) {
          for (int p = 0; p < P; p += 2) prefetch(quad + p / 2 * tile.stride + kPrefetchBytes);
        }
        for (int r = 0; r < R; ++r) {
          Quad a = broadcast_quad(activations + r * tile.row_bytes);
          for (int p = 0; p < P; ++p) sums[r][p] = dot_u4(sums[r][p], w[p], a);
        }
        quad += 64;
        activations += 4;
      }
      for (int r = 0; r < R; ++r) {
        for (int p = 0; p < P; ++p) totals[r][p] = add_u4(totals[r][p], sums[r][p]);
      }
    }
    F32x16 scales[P];
    load_scales<P, kUnpacked>(block, tile.stride, scales);
    for (int r = 0; r < R; ++r) {
      F32x16 scale = set1(tile.scales[r * tile.activation_groups + g]);
      for (int p = 0; p < P; ++p) {
        float* out = tile.out + r * kSumStride + p * kLanes;
        store(out, fma(to_f32(totals[r][p]), mul(scales[p], scale), load(out)));
      }
    }
    block += int4_block_bytes(tile.group_size);
  }
}

using MultiplyInt4 = void (*)(const Int4Tile&);

template <int P, bool kUnpacked, int R = kUnpacked ? kUnpackedMaxRows : kPackedMaxRows>
MultiplyInt4 multiply_int4_rows(int rows) {
  if constexpr (R == 1) {
    return &multiply_int4<1, P, kUnpacked>;
  } else if constexpr (!kUnpacked && packed_panels(R) < P) {
    return multiply_int4_rows<P, kUnpacked, R - 1>(rows);
  } else {
    return rows == R ? &multiply_int4<R, P, kUnpacked>
                     : multiply_int4_rows<P, kUnpacked, R - 1>(rows);
  }
}

// Packed weights: rows <= kPackedMaxRows, panels even.
TRIMTAB_INLINE void multiply_packed(Int4Tile tile, int rows, int panels) {
  while (panels > 0) {
    int p = packed_panels(rows);
    while (p > panels) p /= 2;
    if constexpr (packed_panels(1) == 4) {
      (p == 4 ? multiply_int4_rows<4, false>(rows) : multiply_int4_rows<2, false>(rows))(tile);
    } else {
      multiply_int4_rows<2, false>(rows)(tile);
    }
    tile.weights += p / 2 * tile.stride;
    tile.out += p * kLanes;
    panels -= p;
  }
}

// Unpacked weights: any number of rows, in tiles as even as can be; panels even.
TRIMTAB_INLINE void multiply_unpacked(Int4Tile tile, int64_t rows, int panels) {
  int64_t tiles = (rows + kUnpackedMaxRows - 1) / kUnpackedMaxRows;
  for (; tiles > 0; --tiles) {
    int r = static_cast<int>((rows + tiles - 1) / tiles);
    constexpr int kPanels = unpacked_panels(1);
    Int4Tile part = tile;
    for (int p = 0; p < panels; p += kPanels) {
      multiply_int4_rows<kPanels, true>(r)(part);
      part.weights += kPanels * tile.stride;
      part.out += kPanels * kLanes;
    }
    tile.activations += r * tile.row_bytes;
    tile.scales += r * tile.activation_groups;
    tile.sums += r * tile.activation_groups;
    tile.out += r * kSumStride;
    rows -= r;
  }
}

// `groups` groups of a pair of panels, from packed to unpacked form; `out` holds the first panel,
// `out + panel_bytes` the second.
TRIMTAB_INLINE void unpack_int4(const uint8_t* packed, int64_t groups, int64_t group_size,
                                uint8_t* out, int64_t panel_bytes) {
  for (int64_t g = 0; g < groups; ++g) {
    F32x16 scales[2];
    load_scales<2, false>(packed, 0, scales);
    store(reinterpret_cast<float*>(out), scales[0]);
    store(reinterpret_cast<float*>(out + panel_bytes), scales[1]);
    for (int64_t q = 0; q < group_size / 4; ++q) {
      int64_t at = kScaleBytes + q * 64;
      Bytes64 pair = load_bytes(packed + at);
      store_bytes(out + at, low_nibbles(pair));
      store_bytes(out + panel_bytes + at, high_nibbles(pair));
    }
    packed += int4_block_bytes(group_size);
    out += int4_block_bytes(group_size);
  }
}

}  // namespace trimtab::TRIMTAB_ISA
