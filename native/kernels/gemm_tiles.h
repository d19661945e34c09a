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
};

// function(r, p) for every vector of an R x P tile.
template <int R, int P, class Function>
TRIMTAB_INLINE void for_tile(const Function& function) {
  unroll<R>([&](auto r) TRIMTAB_INLINE_LAMBDA {
    unroll<P>([&](auto p) TRIMTAB_INLINE_LAMBDA { function(r, p); });
  });
}

template <class Format, int R, int P>
void multiply(const Tile<Format>& tile) {
  typename Format::Sum sums[R][P];
  for_tile<R, P>([&](int r, int p) TRIMTAB_INLINE_LAMBDA {
    sums[r][p] = load(tile.sums + r * kSumStride + p * kLanes);
  });
  const uint8_t* weights = tile.weights;
  const uint8_t* activations = tile.activations;
  const int64_t panel_bytes = tile.panel_bytes, row_bytes = tile.row_bytes;
  for (int64_t u = 0; u < tile.units; ++u) {
    unroll<Format::kSteps>([&](auto step) TRIMTAB_INLINE_LAMBDA {
      decltype(Format::weights(weights, step)) w[P];
      unroll<P>([&](auto p) TRIMTAB_INLINE_LAMBDA {
        w[p] = Format::weights(weights + p * panel_bytes, step);
        if (R == 1 && step == 0) prefetch(weights + p * panel_bytes + kPrefetchBytes);
      });
      unroll<R>([&](auto r) TRIMTAB_INLINE_LAMBDA {
        auto a = Format::activation(activations + r * row_bytes);
        unroll<P>([&](auto p)
                      TRIMTAB_INLINE_LAMBDA { sums[r][p] = Format::dot(sums[r][p], w[p], a); });
      });
      activations += 4;
    });
    weights += 64;
  }
  for_tile<R, P>([&](int r, int p) TRIMTAB_INLINE_LAMBDA {
    store(tile.sums + r * kSumStride + p * kLanes, sums[r][p]);
  });
}

template <class Format>
using Multiply = void (*)(const Tile<Format>&);

// multiply<Format, rows, P>
template <class Format, int P, int R = Format::kMaxRows>
Multiply<Format> multiply_rows(int rows) {
  if constexpr (R == 1) {
    return &multiply<Format, 1, P>;
  } else if constexpr (P > 1 && Format::panels(R) < P) {
    return multiply_rows<Format, P, R - 1>(rows);
  } else {
    return rows == R ? &multiply<Format, R, P> : multiply_rows<Format, P, R - 1>(rows);
  }
}

// Multiplies `rows` rows by `panels` (1..kGroupPanels) panels over a range of units: every weight
// is read once for each tile of up to kMaxRows rows.
template <class Format>
void multiply_block(Tile<Format> tile, int64_t rows, int panels) {
  int64_t tiles = (rows + Format::kMaxRows - 1) / Format::kMaxRows;
  for (; tiles > 0; --tiles) {
    int r = static_cast<int>((rows + tiles - 1) / tiles);
    Tile<Format> part = tile;
    for (int left = panels; left > 0;) {
      int p = Format::panels(r);
      while (p > left) p /= 2;
      Multiply<Format> function = p == 4   ? multiply_rows<Format, 4>(r)
                                  : p == 2 ? multiply_rows<Format, 2>(r)
                                           : multiply_rows<Format, 1>(r);
      function(part);
      part.weights += p * tile.panel_bytes;
      part.sums += p * kLanes;
      left -= p;
    }
    tile.activations += r * tile.row_bytes;
    tile.sums += r * kSumStride;
    rows -= r;
  }
}

}  // namespace trimtab::TRIMTAB_ISA
