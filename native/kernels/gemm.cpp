// The loops around the tiles. From outside in:
//
//   groups of 4 panels       their weights stay in cache over all rows
//     blocks of 64 rows      their sums fit the first-level cache
//       blocks of K          weights and activations fit the second-level cache (many rows only)
//         tiles              gemm_tiles.h, gemm_int4.h
//     epilogue
#include "kernels/gemm.h"

#include "kernels/gemm_epilogue.h"
#include "kernels/gemm_expand.h"
#include "kernels/gemm_int4.h"
#include "kernels/gemm_int8_groups.h"
#include "kernels/gemm_tiles.h"
#include "kernels/quantize.h"

namespace trimtab::TRIMTAB_ISA {

namespace {

constexpr int64_t kRowBlock = 64;

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// What one call of gemm works on.
struct Call {
  const PackedMatrix& w;
  const Activations& a;
  const GemmOutput& out;
};

void start_sums(const Call&, const Sums& sums, float* values) {
  for (int64_t r = 0; r < sums.rows; ++r) {
    for (int p = 0; p < sums.panels; ++p) store(values + r * kSumStride + p * kLanes, zero_f32());
  }
}

void start_sums(const Call& call, const Sums& sums, int32_t* values) {
  for (int64_t r = 0; r < sums.rows; ++r) {
    const I32x16 start = set1(call.a.starts[sums.m + r]);
    for (int p = 0; p < sums.panels; ++p) store(values + r * kSumStride + p * kLanes, start);
  }
}

template <class Format>
void gemm_units(const Call& call, int64_t units, Sums sums) {
  alignas(64) uint8_t storage[kRowBlock * kSumStride * 4];  // Lane, then float: vectors alias it
  auto* values = reinterpret_cast<typename Format::Lane*>(storage);
  start_sums(call, sums, values);
  const int64_t panel_bytes = units * 64;
  multiply_panels<Format>(
      {call.w.data + sums.panel * panel_bytes, panel_bytes, call.a.data + sums.m * call.a.row_bytes,
       call.a.row_bytes, units, values, nullptr, 0},
      sums.rows, sums.panels);
  sums.values = reinterpret_cast<float*>(storage);
  if constexpr (Format::kInteger) scale_int8(values, call.a.scales, call.w.scales, sums);
  write_output(sums, call.w, call.out);
}

// Of all groups of the sums.
GroupTile group_tile(const Call& call, const Sums& sums) {
  const PackedMatrix& w = call.w;
  const int64_t groups = w.groups(), starts = activation_starts(w);
  const uint8_t* pair = w.data + sums.panel / 2 * w.pair_bytes();
  // without offsets nothing reads the sums
  const float* scaled_sums = w.offset_format == OffsetFormat::none ? call.a.scales : call.a.sums;
  return {&w,
          pair,
          w.pair_bytes(),
          pair + w.super_bytes(),
          w.pair_bytes(),
          w.block_bytes(),
          w.header_bytes(),
          call.a.data + sums.m * call.a.row_bytes,
          call.a.row_bytes,
          call.a.scales + sums.m * groups,
          scaled_sums + sums.m * groups,
          groups,
          call.a.starts + sums.m * starts,
          starts,
          0,
          groups,
          w.group_size,
          sums.values};
}

void gemm_int4(const Call& call, Sums sums) {
  alignas(64) float values[kRowBlock * kSumStride];
  alignas(64) uint8_t unpacked[kUnpackedBytes];
  sums.values = values;
  start_sums(call, sums, values);
  const int64_t group_size = call.w.group_size;
  const int64_t chunk = smaller(group_size, 4 * kU4Quads);
  GroupTile tile = group_tile(call, sums);
  if (sums.rows <= kPackedRows) {
    multiply_packed(tile, sums.rows, sums.panels);
  } else {
    GroupTile packed = tile;
    const int64_t groups = tile.groups, block_groups = kInt4BlockColumns / group_size;
    tile.weights = unpacked;
    tile.header_bytes = unpacked_header_bytes(call.w.offset_format);
    tile.block_bytes = tile.header_bytes + 16 * group_size;
    tile.stride = block_groups * tile.block_bytes;
    for (int64_t first = 0; first < groups; first += block_groups) {
      packed.first_group = first;
      packed.groups = tile.groups = smaller(block_groups, groups - first);
      for (int p = 0; p < sums.panels; p += 2) {
        GroupTile pair = packed;
        pair.weights += p / 2 * packed.stride + first * packed.block_bytes;
        pair.supers += p / 2 * packed.supers_stride;
        unpack_int4(pair, unpacked + p * tile.stride, tile.stride);
      }
      multiply_unpacked(tile, sums.rows, sums.panels);
      tile.activations += tile.groups * group_size;
      tile.scales += tile.groups;
      tile.sums += tile.groups;
      tile.starts += tile.groups * (group_size / chunk);
    }
  }
  write_output(sums, call.w, call.out);
}

void gemm_int8_groups(const Call& call, Sums sums) {
  alignas(64) float values[kRowBlock * kSumStride];
  sums.values = values;
  start_sums(call, sums, values);
  const int64_t group_size = call.w.group_size, groups = call.w.groups();
  const int64_t block = sums.rows <= Int8Format::kMaxRows ? groups : kInt8BlockColumns / group_size;
  GroupTile tile = group_tile(call, sums);
  for (int64_t first = 0; first < groups; first += block) {
    tile.first_group = first;
    tile.groups = smaller(block, groups - first);
    multiply_int8_block(tile, sums.rows, sums.panels);
    tile.weights += tile.groups * tile.block_bytes;
    tile.activations += tile.groups * group_size * kInt8Steps;
    tile.scales += tile.groups;
    tile.sums += tile.groups;
    tile.starts += tile.groups;
  }
  write_output(sums, call.w, call.out);
}

// int5 and int6: as int8, once a block of K has been expanded for all rows.
void gemm_expanded(const Call& call, Sums sums) {
  alignas(64) float values[kRowBlock * kSumStride];
  alignas(64) uint8_t expanded[kExpandedBytes];
  sums.values = values;
  start_sums(call, sums, values);
  const int64_t group_size = call.w.group_size, groups = call.w.groups();
  const int64_t block = kExpandedColumns / group_size;
  GroupTile packed = group_tile(call, sums), tile = packed;
  tile.weights = expanded;
  tile.block_bytes = tile.header_bytes + 32 * group_size;
  tile.stride = block * tile.block_bytes;
  for (int64_t first = 0; first < groups; first += block) {
    packed.first_group = tile.first_group = first;
    packed.groups = tile.groups = smaller(block, groups - first);
    for (int p = 0; p < sums.panels; p += 2) {
      GroupTile pair = packed;
      pair.weights += p / 2 * packed.stride + first * packed.block_bytes;
      expand_to_int8(pair, expanded + p / 2 * tile.stride);
    }
    multiply_int8_block(tile, sums.rows, sums.panels);
    tile.activations += tile.groups * group_size * kInt8Steps;
    tile.scales += tile.groups;
    tile.sums += tile.groups;
    tile.starts += tile.groups;
  }
  write_output(sums, call.w, call.out);
}

// fp8: as f32, once a block of K has been expanded for all rows.
void gemm_fp8(const Call& call, Sums sums) {
  alignas(64) float values[kRowBlock * kSumStride];
  alignas(64) float expanded[kGroupPanels * kFp8Columns * kPanel];
  sums.values = values;
  start_sums(call, sums, values);
  const PackedMatrix& w = call.w;
  const int64_t group_size = w.group_size, block = kFp8Columns / group_size;
  const int64_t panel_bytes = w.groups() * w.block_bytes();
  const uint8_t* panel = w.data + sums.panel * panel_bytes;
  for (int64_t first = 0; first < w.groups(); first += block) {
    const int64_t last = smaller(first + block, w.groups());
    for (int p = 0; p < sums.panels; ++p) {
      for (int64_t g = first; g < last; ++g)
        expand_fp8(panel + p * panel_bytes + g * w.block_bytes(), group_size,
                   expanded + (p * kFp8Columns + (g - first) * group_size) * kPanel);
    }
    const int64_t column = first * group_size;
    multiply_panels<F32Format>(
        {reinterpret_cast<const uint8_t*>(expanded), kFp8Columns * kPanel * 4,
         call.a.data + sums.m * call.a.row_bytes + column * 4, call.a.row_bytes,
         smaller(last * group_size, w.cols) - column, values, nullptr, 0},
        sums.rows, sums.panels);
  }
  write_output(sums, w, call.out);
}

void gemm(const PackedMatrix& w, const Activations& a, int64_t m0, int64_t m1, int64_t panel0,
          int64_t panel1, const GemmOutput& out) {
  Call call = {w, a, out};
  for (int64_t panel = panel0; panel < panel1; panel += kGroupPanels) {
    int panels = static_cast<int>(smaller(kGroupPanels, panel1 - panel));
    for (int64_t m = m0; m < m1; m += kRowBlock) {
      Sums sums = {nullptr, smaller(kRowBlock, m1 - m), m, panel, panels};
      switch (w.format) {
        case WeightFormat::f32:
          gemm_units<F32Format>(call, w.padded_cols, sums);
          break;
        case WeightFormat::bf16:
          gemm_units<Bf16Format>(call, w.padded_cols / 2, sums);
          break;
        case WeightFormat::int8:
          if (w.group_size != 0)
            gemm_int8_groups(call, sums);
          else
            gemm_units<Int8Format>(call, w.padded_cols / 4, sums);
          break;
        case WeightFormat::int4:
          gemm_int4(call, sums);
          break;
        case WeightFormat::int5:
        case WeightFormat::int6:
          gemm_expanded(call, sums);
          break;
        case WeightFormat::fp8:
          gemm_fp8(call, sums);
          break;
      }
    }
  }
}

}  // namespace

GemmKernels gemm_kernels() { return {activation_bytes, pack, prepare, gemm}; }

}  // namespace trimtab::TRIMTAB_ISA
