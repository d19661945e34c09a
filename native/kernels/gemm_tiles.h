// Register tiles of the formats whose weights are multiplied as they are stored: f32, bf16, int8.
// All three come in units: 64 bytes of a weight panel face 4 * steps bytes of an activation row.
//
//   format  a unit is    steps
//   f32     1 column     1
//   bf16    2 columns    kBf16Steps
//   int8    4 columns    kInt8Steps
//
// A tile multiplies R rows by P panels and adds to R x P vectors of sums. Each sum is one chain
// over ascending units, whatever R and P and wherever a range of units was cut: the law.
#pragma once

#include "kernels/simd.h"

namespace trimtab::TRIMTAB_ISA {

constexpr int kGroupPanels = 4;  // panels whose sums are held together
constexpr int64_t kSumStride = kGroupPanels * 16;

// Weight bytes to fetch ahead of their use where each is used once.
constexpr int64_t kPrefetchBytes = 1024;

// The same of each panel of a tile of several rows: fewer panels go through theirs faster.
constexpr int64_t prefetch_bytes(int panels) {
#if defined(TRIMTAB_KERNELS_AVX512)
  return panels == kGroupPanels ? kPrefetchBytes : 4 * kPrefetchBytes;
#else
  return kPrefetchBytes * (kGroupPanels / panels);
#endif
}

constexpr int64_t kUnitBlock = 512;  // 32 KiB of a panel's weights: several row tiles read them

struct F32Format {
  using Sum = F32x16;
  using Lane = float;
  static constexpr bool kInteger = false;
  static constexpr int kSteps = 1;
#if defined(TRIMTAB_KERNELS_AVX512)
  static constexpr int kMaxRows = 12;
  static constexpr int panels(int rows) { return rows <= 6 ? 4 : 2; }
#elif defined(TRIMTAB_KERNELS_NEON)
  static constexpr int kMaxRows = 6;
  static constexpr int panels(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
#else
  static constexpr int kMaxRows = 6;
  static constexpr int panels(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }
#endif
  TRIMTAB_INLINE F32x16 weights(const uint8_t* p, int) {
    return load(reinterpret_cast<const float*>(p));
  }
  TRIMTAB_INLINE F32x16 activation(const uint8_t* p) {
    float value;
    std::memcpy(&value, p, 4);
    return set1(value);
  }
  TRIMTAB_INLINE F32x16 dot(F32x16 sum, F32x16 w, F32x16 a) { return fma(w, a, sum); }
};

struct Bf16Format {
  using Sum = F32x16;
  using Lane = float;
  static constexpr bool kInteger = false;
  static constexpr int kSteps = kBf16Steps;
#if defined(TRIMTAB_KERNELS_NEON)
  static constexpr int kMaxRows = 5;  // with 6, GCC 12 spills
#else
  static constexpr int kMaxRows = F32Format::kMaxRows;
#endif
  static constexpr int panels(int rows) { return F32Format::panels(rows); }
  TRIMTAB_INLINE Bf16Weights weights(const uint8_t* p, int step) {
    return load_bf16_weights(p, step);
  }
  TRIMTAB_INLINE Bf16Pair activation(const uint8_t* p) { return broadcast_bf16(p); }
  TRIMTAB_INLINE F32x16 dot(F32x16 sum, Bf16Weights w, Bf16Pair a) { return dot_bf16(sum, w, a); }
};

struct Int8Format {
  using Sum = I32x16;
  using Lane = int32_t;
  static constexpr bool kInteger = true;
  static constexpr int kSteps = kInt8Steps;
  static constexpr int kMaxRows = F32Format::kMaxRows;
  static constexpr int panels(int rows) { return F32Format::panels(rows); }
  TRIMTAB_INLINE Int8Weights weights(const uint8_t* p, int step) {
    return load_int8_weights(p, step);
  }
  TRIMTAB_INLINE Int8Pairs activation(const uint8_t* p) { return broadcast_int8(p); }
  TRIMTAB_INLINE I32x16 dot(I32x16 sum, Int8Weights w, Int8Pairs a) { return dot_int8(sum, w, a); }
};

template <class Format>
struct Tile {
  const uint8_t* weights;  // of the first panel and unit
  int64_t panel_bytes;
  const uint8_t* activations;  // of the first row and unit
  int64_t row_bytes;
  int64_t units;
  typename Format::Lane* sums;  // [row][kSumStride], the tile's first panel
  const uint8_t* next;          // weights of the first panel to fetch meanwhile: one prefetch
  int64_t next_step;            // a unit and panel, so many bytes after the last
};

// function(r, p) for every vector of an R x P tile.
template <int R, int P, class Function>
TRIMTAB_INLINE void for_tile(const Function& function) {
  unroll<R>([&](auto r) TRIMTAB_INLINE_LAMBDA {
    unroll<P>([&](auto p) TRIMTAB_INLINE_LAMBDA { function(r, p); });
  });
}

// Fetching: see Tile::next; a single row fetches for itself.
template <class Format, int R, int P, bool Fetching>
void multiply(const Tile<Format>& tile) {
  typename Format::Sum sums[R][P];
  for_tile<R, P>([&](int r, int p) TRIMTAB_INLINE_LAMBDA {
    sums[r][p] = load(tile.sums + r * kSumStride + p * kLanes);
  });
  const uint8_t* weights = tile.weights;
  const uint8_t* activations = tile.activations;
  const int64_t panel_bytes = tile.panel_bytes, row_bytes = tile.row_bytes;
  const uint8_t* next = tile.next;
  const int64_t next_step = tile.next_step;
  for (int64_t u = 0; u < tile.units; ++u) {
    unroll<Format::kSteps>([&](auto step) TRIMTAB_INLINE_LAMBDA {
      decltype(Format::weights(weights, step)) w[P];
      unroll<P>([&](auto p) TRIMTAB_INLINE_LAMBDA {
        w[p] = Format::weights(weights + p * panel_bytes, step);
        if (R == 1 && step == 0) prefetch(weights + p * panel_bytes + kPrefetchBytes);
        if (R > 1 && Fetching && step == 0) prefetch_far(next + p * panel_bytes);
      });
      unroll<R>([&](auto r) TRIMTAB_INLINE_LAMBDA {
        auto a = Format::activation(activations + r * row_bytes);
        unroll<P>([&](auto p)
                      TRIMTAB_INLINE_LAMBDA { sums[r][p] = Format::dot(sums[r][p], w[p], a); });
      });
      activations += 4;
    });
    weights += 64;
    next += next_step;
  }
  for_tile<R, P>([&](int r, int p) TRIMTAB_INLINE_LAMBDA {
    store(tile.sums + r * kSumStride + p * kLanes, sums[r][p]);
  });
}

template <class Format>
using Multiply = void (*)(const Tile<Format>&);

// multiply<Format, rows, P, Fetching>
template <class Format, int P, bool Fetching, int R = Format::kMaxRows>
Multiply<Format> multiply_rows(int rows) {
  if constexpr (R == 1) {
    return &multiply<Format, 1, P, Fetching>;
  } else if constexpr (P > 1 && Format::panels(R) < P) {
    return multiply_rows<Format, P, Fetching, R - 1>(rows);
  } else {
    return rows == R ? &multiply<Format, R, P, Fetching>
                     : multiply_rows<Format, P, Fetching, R - 1>(rows);
  }
}

// More row tiles than this are not worth the fetching: memory has time enough.
constexpr int64_t kFetchingTiles = 4;

// All rows, in `tiles` tiles as even as can be, by P panels over one block of units.
template <class Format, int P>
TRIMTAB_INLINE void multiply_row_tiles(Tile<Format> tile, int64_t rows, int64_t tiles) {
  const bool fetching = tiles <= kFetchingTiles;
  for (; tiles > 0; --tiles) {
    const int r = static_cast<int>((rows + tiles - 1) / tiles);
    (fetching ? multiply_rows<Format, P, true>(r) : multiply_rows<Format, P, false>(r))(tile);
    tile.activations += r * tile.row_bytes;
    tile.sums += r * kSumStride;
    tile.next += tile.units * tile.next_step;
    rows -= r;
  }
}

// Multiplies `rows` rows by `panels` (1..kGroupPanels) panels, as many at a time as the tallest
// tile takes. Several tiles of rows share a block of units while it is in cache, and each of them
// fetches its part of the weights that come next: else the first would wait for memory and the
// others leave it idle.
template <class Format>
void multiply_panels(Tile<Format> tile, int64_t rows, int panels) {
  const int64_t tiles = (rows + Format::kMaxRows - 1) / Format::kMaxRows, units = tile.units;
  const int64_t block = tiles == 1 ? units : kUnitBlock;
  const int most = Format::panels(static_cast<int>((rows + tiles - 1) / tiles));
  tile.next_step = (64 + tiles - 1) / tiles;
  for (int64_t first = 0; first < units; first += block) {
    Tile<Format> part = tile;
    part.weights += first * 64;
    part.activations += first * 4 * Format::kSteps;
    part.units = units - first < block ? units - first : block;
    const uint8_t* after = first + block < units ? part.weights + block * 64
                                                 : tile.weights + panels * tile.panel_bytes;
    for (int left = panels; left > 0;) {
      int p = most;
      while (p > left) p /= 2;
      part.next = tiles == 1 ? part.weights + prefetch_bytes(p)
                  : left > p ? part.weights + p * tile.panel_bytes
                             : after;
      if (p == 4)
        multiply_row_tiles<Format, 4>(part, rows, tiles);
      else if (p == 2)
        multiply_row_tiles<Format, 2>(part, rows, tiles);
      else
        multiply_row_tiles<Format, 1>(part, rows, tiles);
      part.weights += p * tile.panel_bytes;
      part.sums += p * kLanes;
      left -= p;
    }
  }
}

}  // namespace trimtab::TRIMTAB_ISA
