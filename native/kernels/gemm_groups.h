// What int4 and int8 share where a group of inputs has a scale of its own. Within a group the sums
// are integers and exact; what they start at turns stored weights, which have an offset, into
// weights. Then, in ascending order of groups, one fma a group:
// y += float(sum) * (weight scale * activation scale).
#pragma once

#include "kernels/gemm_tiles.h"

namespace trimtab::TRIMTAB_ISA {

constexpr int64_t kScaleBytes = 64;  // of a block: one group of a pair of panels

struct GroupTile {
  const uint8_t* weights;  // of the first panel or pair of panels, and group
  int64_t stride;          // bytes between panels or pairs
  const uint8_t* activations;
  int64_t row_bytes;
  const float* scales;    // activation scales of the first row and group
  int64_t scales_stride;  // groups in a row
  const int32_t* starts;  // likewise: what the sums begin with
  int64_t starts_stride;
  int64_t groups, group_size;  // to multiply
  float* out;                  // [row][kSumStride], the tile's first panel
};

template <class Vector, int R, int P>
struct Vectors {
  Vector at[R][P];
};

// out += the sums of group g, scaled.
template <int R, int P>
TRIMTAB_INLINE void add_scaled(const GroupTile& tile, const Vectors<I32x16, R, P>& sums,
                               const F32x16 (&weight_scales)[P], int64_t g, float* out) {
  for_tile<R, P>([&](int r, int p) TRIMTAB_INLINE_LAMBDA {
    const F32x16 scale = mul(weight_scales[p], set1(tile.scales[r * tile.scales_stride + g]));
    float* y = out + r * kSumStride + p * kLanes;
    store(y, fma(to_f32(sums.at[r][p]), scale, load(y)));
  });
}

// Calls tile(part, r) for tiles of r <= max_rows rows, as even as can be.
template <class Function>
TRIMTAB_INLINE void for_row_tiles(GroupTile part, int64_t rows, int64_t max_rows,
                                  const Function& function) {
  for (int64_t tiles = (rows + max_rows - 1) / max_rows; tiles > 0; --tiles) {
    const int64_t r = (rows + tiles - 1) / tiles;
    function(part, static_cast<int>(r));
    part.activations += r * part.row_bytes;
    part.scales += r * part.scales_stride;
    part.starts += r * part.starts_stride;
    part.out += r * kSumStride;
    rows -= r;
  }
}

}  // namespace trimtab::TRIMTAB_ISA
