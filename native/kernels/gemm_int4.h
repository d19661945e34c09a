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
constexpr int kUnpackedMaxRows = 4;
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
    unroll<P>([&](auto p) TRIMTAB_INLINE_LAMBDA { w[p] = load_bytes(quad + p * stride); });
  } else {
    unroll<P / 2>([&](auto pair) TRIMTAB_INLINE_LAMBDA {
      Bytes64 nibbles = load_bytes(quad + pair * stride);
      w[pair * 2] = low_nibbles(nibbles);
      w[pair * 2 + 1] = high_nibbles(nibbles);
    });
  }
}

template <int P, bool kUnpacked>
TRIMTAB_INLINE void load_scales(const uint8_t* block, int64_t stride, F32x16* scales) {
  unroll<P>([&](auto p) TRIMTAB_INLINE_LAMBDA {
    if constexpr (kUnpacked) {
      scales[p] = load(reinterpret_cast<const float*>(block + p * stride));
    } else {
      const uint8_t* half = block + p / 2 * stride + p % 2 * (kScaleBytes / 2);
      scales[p] = load_f16(reinterpret_cast<const uint16_t*>(half));
    }
  });
}

template <class Vector, int R, int P>
struct Vectors {
  Vector at[R][P];
};

// Adds the integer products of a chunk of quads, at most kU4Quads, to the sums.
template <int R, int P, bool kUnpacked>
TRIMTAB_INLINE void multiply_quads(const uint8_t* weights, int64_t stride,
                                   const uint8_t* activations, int64_t row_bytes, int quads,
                                   Vectors<U4Sums, R, P>& sums) {
#pragma GCC unroll 1  // unrolled, GCC reorders the additions until they no longer fit the registers
  for (int q = 0; q < quads; ++q) {
    Bytes64 w[P];
    load_u4<P, kUnpacked>(weights, stride, w);
    if constexpr (R == 1 && !kUnpacked) {
      unroll<P / 2>([&](auto pair) TRIMTAB_INLINE_LAMBDA {
        prefetch(weights + pair * stride + kPrefetchBytes);
      });
    }
    unroll<R>([&](auto r) TRIMTAB_INLINE_LAMBDA {
      Quad a = broadcast_quad(activations + r * row_bytes);
      unroll<P>([&](auto p)
                    TRIMTAB_INLINE_LAMBDA { sums.at[r][p] = dot_u4(sums.at[r][p], w[p], a); });
    });
    weights += 64;
    activations += 4;
  }
}

// Integer sums of a group (8, 16 or 32 quads), in as many chunks as U4Sums needs.
template <int R, int P, bool kUnpacked>
TRIMTAB_INLINE Vectors<I32x16, R, P> multiply_group(const Int4Tile& tile, int64_t g,
                                                    const uint8_t* weights,
                                                    const uint8_t* activations) {
  const int quads = static_cast<int>(tile.group_size / 4);
  const int32_t* row_sums = tile.sums + g;
  const int64_t groups = tile.activation_groups;
  Vectors<I32x16, R, P> totals;
  Vectors<U4Sums, R, P> sums;
  if constexpr (kU4Quads >= 32) {
    for_tile<R, P>([&](int r, int p) TRIMTAB_INLINE_LAMBDA {
      sums.at[r][p] = start_u4(-8 * row_sums[r * groups]);
    });
    multiply_quads<R, P, kUnpacked>(weights, tile.stride, activations, tile.row_bytes, quads, sums);
    for_tile<R, P>([&](int r, int p)
                       TRIMTAB_INLINE_LAMBDA { totals.at[r][p] = total_u4(sums.at[r][p]); });
  } else {
    for_tile<R, P>([&](int r, int p) TRIMTAB_INLINE_LAMBDA {
      totals.at[r][p] = set1(-8 * row_sums[r * groups]);
    });
    for (int q = 0; q < quads; q += kU4Quads) {
      for_tile<R, P>([&](int r, int p) TRIMTAB_INLINE_LAMBDA { sums.at[r][p] = zero_u4(); });
      multiply_quads<R, P, kUnpacked>(weights + q * 64, tile.stride, activations + q * 4,
                                      tile.row_bytes, kU4Quads, sums);
      for_tile<R, P>([&](int r, int p) TRIMTAB_INLINE_LAMBDA {
        totals.at[r][p] = add_u4(totals.at[r][p], sums.at[r][p]);
      });
    }
  }
  return totals;
}

template <int R, int P, bool kUnpacked>
void multiply_int4(const Int4Tile& tile) {
  const uint8_t* block = tile.weights;
  const uint8_t* activations = tile.activations;
  for (int64_t g = 0; g < tile.groups; ++g) {
    Vectors<I32x16, R, P> totals =
        multiply_group<R, P, kUnpacked>(tile, g, block + kScaleBytes, activations);
    F32x16 scales[P];
    load_scales<P, kUnpacked>(block, tile.stride, scales);
    for_tile<R, P>([&](int r, int p) TRIMTAB_INLINE_LAMBDA {
      F32x16 scale = mul(scales[p], set1(tile.scales[r * tile.activation_groups + g]));
      float* out = tile.out + r * kSumStride + p * kLanes;
      store(out, fma(to_f32(totals.at[r][p]), scale, load(out)));
    });
    block += int4_block_bytes(tile.group_size);
    activations += tile.group_size;
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
