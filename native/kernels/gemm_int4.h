// Register tiles of int4: groups of nibbles (gemm_groups.h), weight + 8 each.
//
// A few rows read the packed nibbles straight from memory. Many rows have them unpacked once for a
// block of K, one panel at a time, by unpack_int4:
//
//   packed    [pair][group] { header; u8 nibble[g/4][16][4] }            kernels.h, PackedMatrix
//   unpacked  [panel][group] { f32 scale[16]; u8 weight[g/4][16][4] }    with offsets: scale,
//   offset
#pragma once

#include "kernels/gemm_groups.h"
#include "kernels/simd.h"

namespace trimtab::TRIMTAB_ISA {

// Where a tile's weights come from: pairs of panels from packed nibbles, one panel of such a pair,
// or unpacked panels.
enum class Nibbles { pairs, low, high, unpacked };

// Up to kPairRows rows multiply the pairs of panels at once, up to kPackedMaxRows rows one panel of
// a pair after the other, so that their sums fit the registers.
#if defined(TRIMTAB_KERNELS_AVX512)
constexpr int kPairRows = 8, kPackedMaxRows = 8;
constexpr int packed_panels(int rows) { return rows <= 4 ? 4 : 2; }
constexpr int kUnpackedMaxRows = 12, kUnpackedPanels = 2;
#elif defined(TRIMTAB_KERNELS_NEON)
constexpr int kPairRows = 2, kPackedMaxRows = 6;
constexpr int packed_panels(int rows) { return rows == 1 ? 4 : 2; }
constexpr int kUnpackedMaxRows = 6, kUnpackedPanels = 1;
#else
constexpr int kPairRows = 2, kPackedMaxRows = 6;
constexpr int packed_panels(int) { return 2; }
constexpr int kUnpackedMaxRows = 6, kUnpackedPanels = 1;
#endif

// More rows than this are worth unpacking for.
constexpr int64_t kPackedRows = 2 * kPackedMaxRows;

constexpr int64_t kInt4BlockColumns = 512;  // columns unpacked at a time
constexpr int64_t unpacked_header_bytes(OffsetFormat offsets) {
  return offsets == OffsetFormat::none ? 64 : 128;
}

// Largest for groups of 16 with offsets.
constexpr int64_t kUnpackedBytes = kGroupPanels * (kInt4BlockColumns / 16) * (128 + 16 * 16);

template <int P, Nibbles source>
TRIMTAB_INLINE void load_u4(const uint8_t* quad, int64_t stride, Bytes64* w) {
  if constexpr (source == Nibbles::pairs) {
    unroll<P / 2>([&](auto pair) TRIMTAB_INLINE_LAMBDA {
      Bytes64 nibbles = load_bytes(quad + pair * stride);
      w[pair * 2] = low_nibbles(nibbles);
      w[pair * 2 + 1] = high_nibbles(nibbles);
    });
  } else {
    unroll<P>([&](auto p) TRIMTAB_INLINE_LAMBDA {
      w[p] = load_bytes(quad + p * stride);
      if (source == Nibbles::low) w[p] = low_nibbles(w[p]);
      if (source == Nibbles::high) w[p] = high_nibbles(w[p]);
    });
  }
}

// Scales of group g, whose block is at `block`.
template <int P, Nibbles source>
TRIMTAB_INLINE void load_scales(const GroupTile& tile, const uint8_t* block, int64_t g,
                                F32x16* scales) {
  unroll<P>([&](auto p) TRIMTAB_INLINE_LAMBDA {
    if constexpr (source == Nibbles::unpacked) {
      scales[p] = load(reinterpret_cast<const float*>(block + p * tile.stride));
    } else {
      const int pair = source == Nibbles::pairs ? p / 2 : p;
      const int half = source == Nibbles::pairs ? p % 2 : source == Nibbles::high ? 1 : 0;
      scales[p] = load_scale(*tile.w, block + pair * tile.stride, supers_at(tile, pair, g), half);
    }
  });
}

// The offsets of group g, of panels that were unpacked.
TRIMTAB_APART void add_unpacked_offsets(const GroupTile& tile, const uint8_t* block, int64_t g,
                                        int rows, int panels, float* out) {
  for (int p = 0; p < panels; ++p) {
    const F32x16 offset = load(reinterpret_cast<const float*>(block + p * tile.stride) + kLanes);
    add_offset(tile, offset, g, rows, out + p * kLanes);
  }
}

// Adds the integer products of `quads` quads to the sums.
template <int R, int P, Nibbles source>
TRIMTAB_INLINE void multiply_quads(const uint8_t* weights, int64_t stride,
                                   const uint8_t* activations, int64_t row_bytes, int quads,
                                   Vectors<U4Sums, R, P>& sums) {
#pragma GCC unroll 1  // unrolled, GCC reorders the additions until they no longer fit the registers
  for (int q = 0; q < quads; ++q) {
    Bytes64 w[P];
    load_u4<P, source>(weights, stride, w);
    if constexpr (source == Nibbles::pairs) {
      unroll<P / 2>([&](auto pair) TRIMTAB_INLINE_LAMBDA {
        prefetch(weights + pair * stride + kPrefetchBytes);
      });
    } else if constexpr (source == Nibbles::low) {
      prefetch(weights + kPrefetchBytes);
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

// One group: integer sums in kChunks chunks of as many quads as U4Sums takes, then out.
template <int R, int P, Nibbles source, int kChunks>
TRIMTAB_INLINE void multiply_group(const GroupTile& tile, const uint8_t* block,
                                   const uint8_t* activations, int64_t g, float* out) {
  const int64_t chunk = tile.group_size / kChunks;
  Vectors<I32x16, R, P> totals;
  unroll<kChunks>([&](auto c) TRIMTAB_INLINE_LAMBDA {
    Vectors<U4Sums, R, P> sums;
    unroll<R>([&](auto r) TRIMTAB_INLINE_LAMBDA {
      const U4Sums start = start_u4(tile.starts[r * tile.starts_stride + g * kChunks + c]);
      unroll<P>([&](auto p) TRIMTAB_INLINE_LAMBDA { sums.at[r][p] = start; });
    });
    multiply_quads<R, P, source>(block + tile.header_bytes + c * chunk * 16, tile.stride,
                                 activations + c * chunk, tile.row_bytes,
                                 static_cast<int>(chunk / 4), sums);
    for_tile<R, P>([&](int r, int p) TRIMTAB_INLINE_LAMBDA {
      const I32x16 total = total_u4(sums.at[r][p]);
      totals.at[r][p] = c == 0 ? total : add(totals.at[r][p], total);
    });
  });
  F32x16 scales[P];
  load_scales<P, source>(tile, block, g, scales);
  add_scaled(tile, totals, scales, g, out);
  if (tile.w->offset_format == OffsetFormat::none) return;
  if constexpr (source == Nibbles::unpacked)
    add_unpacked_offsets(tile, block, g, R, P, out);
  else
    add_offsets(tile, block, g, R, source == Nibbles::high ? 1 : 0, P, out);
}

template <int R, int P, bool kUnpacked, int kChunks>
TRIMTAB_INLINE void multiply_groups(const GroupTile& tile) {
  const uint8_t* block = tile.weights;
  const uint8_t* activations = tile.activations;
  for (int64_t g = 0; g < tile.groups; ++g) {
    if constexpr (kUnpacked) {
      multiply_group<R, P, Nibbles::unpacked, kChunks>(tile, block, activations, g, tile.out);
    } else if constexpr (R <= kPairRows) {
      multiply_group<R, P, Nibbles::pairs, kChunks>(tile, block, activations, g, tile.out);
    } else {
      static_assert(P == 2);
      float* second = tile.out + kLanes;
      multiply_group<R, 1, Nibbles::low, kChunks>(tile, block, activations, g, tile.out);
      multiply_group<R, 1, Nibbles::high, kChunks>(tile, block, activations, g, second);
    }
    block += tile.block_bytes;
    activations += tile.group_size;
  }
}

template <int R, int P, bool kUnpacked>
void multiply_int4(const GroupTile& tile) {
  constexpr int kMostChunks = 128 / (4 * kU4Quads);
  if constexpr (kMostChunks > 1) {
    if (tile.group_size == 128) return multiply_groups<R, P, kUnpacked, kMostChunks>(tile);
  }
  multiply_groups<R, P, kUnpacked, 1>(tile);
}

using MultiplyInt4 = void (*)(const GroupTile&);

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

// Packed weights; panels even.
TRIMTAB_INLINE void multiply_packed(const GroupTile& tile, int64_t rows, int panels) {
  for_row_tiles(tile, rows, kPackedMaxRows, [&](GroupTile part, int r) {
    for (int left = panels; left > 0;) {
      int p = packed_panels(r);
      while (p > left) p /= 2;
      if constexpr (packed_panels(1) == 4) {
        (p == 4 ? multiply_int4_rows<4, false>(r) : multiply_int4_rows<2, false>(r))(part);
      } else {
        multiply_int4_rows<2, false>(r)(part);
      }
      part.weights += p / 2 * part.stride;
      part.supers += p / 2 * part.supers_stride;
      part.out += p * kLanes;
      left -= p;
    }
  });
}

// Unpacked weights; panels even.
TRIMTAB_INLINE void multiply_unpacked(const GroupTile& tile, int64_t rows, int panels) {
  for_row_tiles(tile, rows, kUnpackedMaxRows, [&](GroupTile part, int r) {
    for (int p = 0; p < panels; p += kUnpackedPanels) {
      multiply_int4_rows<kUnpackedPanels, true>(r)(part);
      part.weights += kUnpackedPanels * part.stride;
      part.out += kUnpackedPanels * kLanes;
    }
  });
}

// The groups of a tile of one pair of panels, from packed to unpacked form; `out` holds the first
// panel, `out + panel_bytes` the second.
TRIMTAB_INLINE void unpack_int4(const GroupTile& tile, uint8_t* out, int64_t panel_bytes) {
  const PackedMatrix& w = *tile.w;
  const uint8_t* packed = tile.weights;
  const int64_t header_bytes = unpacked_header_bytes(w.offset_format);
  for (int64_t g = 0; g < tile.groups; ++g) {
    const uint8_t* supers = supers_at(tile, 0, g);
    unroll<2>([&](auto half) TRIMTAB_INLINE_LAMBDA {
      float* header = reinterpret_cast<float*>(out + half * panel_bytes);
      const F32x16 scale = load_scale(w, packed, supers, half);
      store(header, scale);
      if (w.offset_format != OffsetFormat::none)
        store(header + kLanes, load_offset(w, packed, supers, half, scale));
    });
    const uint8_t* from = packed + tile.header_bytes;
    uint8_t* to = out + header_bytes;
    for (int64_t q = 0; q < tile.group_size / 4; ++q) {
      prefetch(from + q * 64 + kPrefetchBytes);
      Bytes64 pair = load_bytes(from + q * 64);
      store_bytes(to + q * 64, low_nibbles(pair));
      store_bytes(to + panel_bytes + q * 64, high_nibbles(pair));
    }
    packed += tile.block_bytes;
    out += header_bytes + 16 * tile.group_size;
  }
}

}  // namespace trimtab::TRIMTAB_ISA
