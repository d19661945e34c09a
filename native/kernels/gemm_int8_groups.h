// Register tiles of int8 whose groups of inputs have a scale of their own (gemm_groups.h).
//
//   [pair of panels][group] { header; u8 weight[g/4][2][16][4] }    kernels.h, PackedMatrix
#pragma once

#include "kernels/gemm_groups.h"

namespace trimtab::TRIMTAB_ISA {

constexpr int64_t kInt8BlockColumns = 2048;  // so many weights of each panel at a time

// One group of P panels from panel `first` of a pair on, which is 0 if P > 1.
template <int R, int P, bool kFromMemory>
TRIMTAB_INLINE void multiply_int8_group(const GroupTile& tile, const uint8_t* block,
                                        const uint8_t* activations, int64_t g, int first) {
  Vectors<I32x16, R, P> sums;
  unroll<R>([&](auto r) TRIMTAB_INLINE_LAMBDA {
    const I32x16 start = set1(tile.starts[r * tile.starts_stride + g]);
    unroll<P>([&](auto p) TRIMTAB_INLINE_LAMBDA { sums.at[r][p] = start; });
  });
  const uint8_t* quad = block + tile.header_bytes + first * 64;
#pragma GCC unroll 1
  for (int64_t k = 0; k < tile.group_size; k += 4) {
    unroll<kInt8Steps>([&](auto step) TRIMTAB_INLINE_LAMBDA {
      Int8Weights w[P];
      unroll<P>([&](auto p) TRIMTAB_INLINE_LAMBDA {
        const uint8_t* weights = quad + p / 2 * tile.stride + p % 2 * 64;
        w[p] = load_int8_weights(weights, step);
        if (kFromMemory && step == 0) prefetch(weights + 2 * kPrefetchBytes);
      });
      unroll<R>([&](auto r) TRIMTAB_INLINE_LAMBDA {
        const Int8Pairs a = broadcast_int8(activations + r * tile.row_bytes);
        unroll<P>([&](auto p)
                      TRIMTAB_INLINE_LAMBDA { sums.at[r][p] = dot_int8(sums.at[r][p], w[p], a); });
      });
      activations += 4;
    });
    quad += 128;
  }
  F32x16 scales[P];
  unroll<P>([&](auto p) TRIMTAB_INLINE_LAMBDA {
    const int pair = p / 2;
    scales[p] =
        load_scale(*tile.w, block + pair * tile.stride, supers_at(tile, pair, g), first + p % 2);
  });
  for_tile<R, P>([&](int r, int p)
                     TRIMTAB_INLINE_LAMBDA { sums.at[r][p] = settled(sums.at[r][p]); });
  add_scaled(tile, sums, scales, g, tile.out + first * kLanes);
  if (tile.w->offset_format != OffsetFormat::none)
    add_offsets(tile, block, g, R, first, P, tile.out + first * kLanes);
}

// R rows by P panels at once; P = 1: by the two of a pair, one after the other within each group,
// so that memory is read in order. kFromMemory: these rows are the first to read their weights.
template <int R, int P, bool kFromMemory>
void multiply_int8_groups(const GroupTile& tile) {
  const uint8_t* block = tile.weights;
  const uint8_t* activations = tile.activations;
  for (int64_t g = 0; g < tile.groups; ++g) {
    multiply_int8_group<R, P, kFromMemory>(tile, block, activations, g, 0);
    if constexpr (P == 1) multiply_int8_group<R, P, kFromMemory>(tile, block, activations, g, 1);
    block += tile.block_bytes;
    activations += tile.group_size * kInt8Steps;
  }
}

using MultiplyInt8Groups = void (*)(const GroupTile&);

// multiply_int8_groups<rows, P, kFromMemory>
template <int P, bool kFromMemory, int R = Int8Format::kMaxRows>
MultiplyInt8Groups multiply_int8_rows(int rows) {
  if constexpr (R == 1) {
    return &multiply_int8_groups<1, P, kFromMemory>;
  } else if constexpr (P > 1 && Int8Format::panels(R) < P) {
    return multiply_int8_rows<P, kFromMemory, R - 1>(rows);
  } else {
    return rows == R ? &multiply_int8_groups<R, P, kFromMemory>
                     : multiply_int8_rows<P, kFromMemory, R - 1>(rows);
  }
}

// Up to kMaxRows rows; panels even.
template <bool kFromMemory>
void multiply_int8_panels(GroupTile part, int rows, int panels) {
  for (int left = panels; left > 0;) {
    int p = Int8Format::panels(rows);
    while (p > left) p /= 2;
    (p == 4   ? multiply_int8_rows<4, kFromMemory>(rows)
     : p == 2 ? multiply_int8_rows<2, kFromMemory>(rows)
              : multiply_int8_rows<1, kFromMemory>(rows))(part);
    if (p == 1) p = 2;
    part.weights += p / 2 * part.stride;
    part.supers += p / 2 * part.supers_stride;
    part.out += p * kLanes;
    left -= p;
  }
}

// Panels even.
TRIMTAB_INLINE void multiply_int8_block(const GroupTile& tile, int64_t rows, int panels) {
  for_row_tiles(tile, rows, Int8Format::kMaxRows, [&](const GroupTile& part, int r) {
    (part.out == tile.out ? multiply_int8_panels<true> : multiply_int8_panels<false>)(part, r,
                                                                                      panels);
  });
}

}  // namespace trimtab::TRIMTAB_ISA
