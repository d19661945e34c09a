// What int4 and int8 share where a group of inputs has a scale of its own. Within a group the sums
// are integers and exact; what they start at turns stored weights, which have an offset, into
// weights. Then, in ascending order of groups, one fma a group:
// y += float(sum) * (weight scale * activation scale), and, where groups have an offset, another:
// y += offset * (sum of the activations * activation scale).
#pragma once

#include "kernels/gemm_tiles.h"

namespace trimtab::TRIMTAB_ISA {

struct GroupTile {
  const PackedMatrix* w;
  const uint8_t* supers;   // of the first pair of panels
  int64_t supers_stride;   // bytes between pairs
  const uint8_t* weights;  // of the first panel or pair of panels, and group
  int64_t stride;          // bytes between panels or pairs
  int64_t block_bytes;     // bytes between groups
  int64_t header_bytes;    // of which before the weights
  const uint8_t* activations;
  int64_t row_bytes;
  const float* scales;    // activation scales of the first row and group
  const float* sums;      // likewise, with offsets
  int64_t scales_stride;  // groups in a row
  const int32_t* starts;  // likewise: what the sums begin with
  int64_t starts_stride;
  int64_t first_group;         // within the matrix
  int64_t groups, group_size;  // to multiply
  float* out;                  // [row][kSumStride], the tile's first panel
};

template <class Vector, int R, int P>
struct Vectors {
  Vector at[R][P];
};

TRIMTAB_INLINE const uint16_t* halves(const uint8_t* p) {
  return reinterpret_cast<const uint16_t*>(p);
}

// The super-scales of group `g` of the tile, in pair number `pair` of its panels.
TRIMTAB_INLINE const uint8_t* supers_at(const GroupTile& tile, int64_t pair, int64_t g) {
  return tile.supers + pair * tile.supers_stride +
         (tile.first_group + g) * tile.group_size / kSuperColumns * 128;
}

// Out of line, as everything that only some formats need: the tiles are many.
#define TRIMTAB_APART static inline __attribute__((noinline))

TRIMTAB_APART void read_scale(const PackedMatrix& w, const uint8_t* header, const uint8_t* supers,
                              int half, float* scale) {
  if (w.scale_format == ScaleFormat::bf16) {
    store(scale, load_bf16(halves(header) + half * kPanel));
  } else if (w.scale_format == ScaleFormat::f32) {
    store(scale, load(reinterpret_cast<const float*>(header) + half * kPanel));
  } else {
    const int8_t* scales = reinterpret_cast<const int8_t*>(header) + half * kPanel;
    store(scale, mul(load_f16(halves(supers) + half * kPanel), to_f32(load_s8(scales))));
  }
}

// Scales of panel `half` of a pair.
TRIMTAB_INLINE F32x16 load_scale(const PackedMatrix& w, const uint8_t* header,
                                 const uint8_t* supers, int half) {
  if (w.scale_format == ScaleFormat::f16) return load_f16(halves(header) + half * kPanel);
  float scale[kLanes];
  read_scale(w, header, supers, half, scale);
  return load(scale);
}

// What a group with offsets adds to q * scale.
TRIMTAB_INLINE F32x16 load_offset(const PackedMatrix& w, const uint8_t* header,
                                  const uint8_t* supers, int half, F32x16 scale) {
  const F32x16 centre = set1(w.centre);
  if (w.has_supers()) {
    const int8_t* offsets = reinterpret_cast<const int8_t*>(header) + 32 + half * kPanel;
    const F32x16 steps = load_f16(halves(supers) + 32 + half * kPanel);
    return fma(centre, scale, sub(zero_f32(), mul(steps, to_f32(load_s8(offsets)))));
  }
  const F32x16 stored = load_f16(halves(header + w.scale_bytes()) + half * kPanel);
  if (w.offset_format == OffsetFormat::zero) return mul(sub(zero_f32(), stored), scale);
  return fma(centre, scale, stored);
}

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

TRIMTAB_INLINE void add_offset(const GroupTile& tile, F32x16 offset, int64_t g, int rows,
                               float* out) {
  for (int r = 0; r < rows; ++r) {
    float* y = out + r * kSumStride;
    store(y, fma(offset, set1(tile.sums[r * tile.scales_stride + g]), load(y)));
  }
}

// out += the offsets of group g, whose block is at `block`: of `panels` panels, the first of them
// panel `half` of its pair.
TRIMTAB_APART void add_offsets(const GroupTile& tile, const uint8_t* block, int64_t g, int rows,
                               int half, int panels, float* out) {
  for (int p = 0; p < panels; ++p) {
    const int pair = (half + p) / 2, of_pair = (half + p) % 2;
    const uint8_t* header = block + pair * tile.stride;
    const uint8_t* supers = supers_at(tile, pair, g);
    const F32x16 scale = load_scale(*tile.w, header, supers, of_pair);
    const F32x16 offset = load_offset(*tile.w, header, supers, of_pair, scale);
    add_offset(tile, offset, g, rows, out + p * kLanes);
  }
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
    part.sums += r * part.scales_stride;
    part.starts += r * part.starts_stride;
    part.out += r * kSumStride;
    rows -= r;
  }
}

}  // namespace trimtab::TRIMTAB_ISA
