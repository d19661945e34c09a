// The table of kernels that one ISA path offers. The same sources are compiled once per path
// (with the path's compiler flags) on top of kernels/simd.h; core/isa.h picks a table at run time.
// Nothing here knows of Python, threads or models.
//
// The law (DESIGN.md section 5): an output element's accumulation order is fixed by the matrix
// shape alone. No kernel may let it depend on the number of rows, on the row or panel range of a
// call, or on which thread runs it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/layer_kernels.h"
#include "kernels/probe_kernels.h"
#include "kernels/sampling_kernels.h"

namespace trimtab {

// int5, int6: in groups only. fp8: float8 e4m3fn, in groups only.
enum class WeightFormat : int32_t {
  f32 = 0,
  bf16 = 1,
  int8 = 2,
  int4 = 3,
  int5 = 4,
  int6 = 5,
  fp8 = 6
};

// Bits of a stored integer; 0 of floats.
constexpr TRIMTAB_SHARED int64_t integer_bits(WeightFormat format) {
  switch (format) {
    case WeightFormat::int4:
      return 4;
    case WeightFormat::int5:
      return 5;
    case WeightFormat::int6:
      return 6;
    case WeightFormat::int8:
      return 8;
    default:
      return 0;
  }
}

constexpr int64_t kPanel = 16;  // output columns of one micro-panel: one 512-bit vector of int32

// Most input columns of a matrix: what int8 sums hold in 32 bits.
constexpr int64_t kMaxCols = 131072;

// Of int8 and int4 in groups: in what form the scales of a group are stored, and what is added to
// its weights. `supers`: an int8 for each (row, group), times an f16 for each (row, kSuperColumns).
enum class ScaleFormat : int32_t { f16 = 0, bf16 = 1, f32 = 2, supers = 3 };
enum class OffsetFormat : int32_t { none = 0, zero = 1, offset = 2 };

constexpr int64_t kSuperColumns = 256;  // input columns that share a super-scale

// What a matrix is stored in. With q the stored integer, centred (-8 to 7, ..., -128 to 127):
//   none     weight = q * scale
//   zero     weight = (q - zero) * scale
//   offset   weight = (q + centre) * scale + offset
struct MatrixFormat {
  WeightFormat weights = WeightFormat::bf16;
  int32_t group_size = 0;  // columns that share a scale: 16, 32, 64 or 128; int8: 0 if a whole
                           // row does; not of f32, bf16
  ScaleFormat scales = ScaleFormat::f16;
  OffsetFormat offsets = OffsetFormat::none;
  float centre = 0;

  bool operator==(const MatrixFormat&) const = default;
};

// A weight matrix [rows (N, outputs), cols (K, inputs)] in the order in which the kernels read it,
// the same bytes on every ISA path. N is padded to panels (int4: pairs of panels), K to the
// format's unit; padding is zero weight.
//   f32   [N/16][K][16]                           f32
//   bf16  [N/16][K/2][16][2]                      bf16
//   int8  [N/16][K/4][16][4]                      u8: q + 128
//         in groups: [N/32] { supers[K/256]; [K/g] { header; u8 q + 128 [g/4][2][16][4] } }
//                    panel 0 of the pair, panel 1
//   int4  [N/32] { supers[K/256]; [K/g] { header; u8 nibble[g/4][16][4] } }
//                    low nibble: panel 0 of the pair, high nibble: panel 1; nibble = q + 8
//   int5  as int4, but 80 bytes instead of u8 nibble[16][4]: the low nibbles of q + 16 in 64 bytes
//         as there, then a bit of each; of the 128 weights of a quad, panel 0 first, the bit of
//         number i is bit i / 16 of byte i % 16
//   int6  likewise 96 bytes of q + 32, bits 2 (i / 32) and the next of byte i % 32
//   fp8   [N/16][K/g] { f32 scale[16]; u8 weight[g][16] }
//   header   { f16, bf16 or f32 scale[32]; with offsets: f16 zero[32] or offset[32] }
//   with supers, header { s8 scale[32]; with offsets: s8 offset[32] }, and supers { f16 scale[32];
//   f16 offset[32]
//   }
//            whose products count, the offset's subtracted; other formats have no supers
struct PackedMatrix {
  WeightFormat format;
  int32_t group_size;   // see MatrixFormat
  int64_t rows, cols;   // logical N, K
  int64_t padded_rows;  // multiple of 16 (in groups: 32)
  int64_t padded_cols;  // multiple of 1 / 2 / 4 / group_size
  const uint8_t* data;  // 64-byte aligned, packed_bytes(matrix) long
  const float* scales;  // int8 without groups: [padded_rows]
  ScaleFormat scale_format;
  OffsetFormat offset_format;
  float centre;

  TRIMTAB_SHARED int64_t groups() const { return group_size == 0 ? 1 : padded_cols / group_size; }
  TRIMTAB_SHARED bool scaled_rows() const {
    return format == WeightFormat::int8 && group_size == 0;
  }
  TRIMTAB_SHARED bool has_supers() const { return scale_format == ScaleFormat::supers; }
  // Of a pair of panels, in groups: its supers, and one block, whose header comes first.
  TRIMTAB_SHARED int64_t super_bytes() const {
    return has_supers() ? (padded_cols + kSuperColumns - 1) / kSuperColumns * 128 : 0;
  }
  TRIMTAB_SHARED int64_t scale_bytes() const {
    return has_supers() ? 32 : scale_format == ScaleFormat::f32 ? 128 : 64;
  }
  TRIMTAB_SHARED int64_t header_bytes() const {
    if (has_supers()) return offset_format == OffsetFormat::none ? 32 : 64;
    return scale_bytes() + (offset_format == OffsetFormat::none ? 0 : 64);
  }
  TRIMTAB_SHARED int64_t block_bytes() const {
    if (format == WeightFormat::fp8) return 64 + 16 * int64_t{group_size};
    return header_bytes() + 4 * integer_bits(format) * int64_t{group_size};
  }
  TRIMTAB_SHARED int64_t pair_bytes() const { return super_bytes() + groups() * block_bytes(); }
};

constexpr TRIMTAB_SHARED int64_t round_up(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

// A PackedMatrix of that shape, its pointers still null.
constexpr TRIMTAB_SHARED PackedMatrix packed_shape(const MatrixFormat& format, int64_t rows,
                                                   int64_t cols) {
  const bool fp8 = format.weights == WeightFormat::fp8;
  const int32_t group = fp8 || integer_bits(format.weights) != 0 ? format.group_size : 0;
  const int64_t unit = group != 0                             ? group
                       : format.weights == WeightFormat::int8 ? 4
                       : format.weights == WeightFormat::bf16 ? 2
                                                              : 1;
  return {format.weights,
          group,
          rows,
          cols,
          round_up(rows, group != 0 && !fp8 ? 2 * kPanel : kPanel),
          round_up(cols, unit),
          nullptr,
          nullptr,
          format.scales,
          format.offsets,
          format.centre};
}

// Bytes of the packed data (scales of rows are separate).
constexpr TRIMTAB_SHARED int64_t packed_bytes(const PackedMatrix& w) {
  if (w.format == WeightFormat::fp8) return w.padded_rows / kPanel * w.groups() * w.block_bytes();
  if (w.group_size != 0) return w.padded_rows / (2 * kPanel) * w.pair_bytes();
  const int64_t elements = w.padded_rows * w.padded_cols;
  if (w.format == WeightFormat::f32) return elements * 4;
  return w.format == WeightFormat::bf16 ? elements * 2 : elements;
}

// Activation rows as the kernels of one weight format on one ISA path read them: opaque to
// everything but `prepare` and `gemm`.
//   f32   float; fp8 too
//   bf16  values rounded to bf16: pairs of bf16 (avx512), floats (other paths)
//   int8  (and int5, int6) one byte (avx2: two) a value, one scale for each (row, group) or row
//   int4  s8, one scale for each (row, group)
// and, of int8 and int4, what integer sums begin with, so that stored weights count as weights.
struct Activations {
  uint8_t* data;      // rows row_bytes apart, 64-byte aligned
  int64_t row_bytes;  // GemmKernels::activation_bytes(format, padded_cols), or more
  float* scales;      // int8, int4: [rows][PackedMatrix::groups()]
  int32_t* starts;    // int8: likewise; int4: [rows][activation_starts(w)]
  float* sums;        // with offsets: [rows][groups], the sum of a group's quantized values, scaled
};

constexpr TRIMTAB_SHARED int64_t activation_starts(const PackedMatrix& w) {
  if (w.format != WeightFormat::int4) return integer_bits(w.format) != 0 ? w.groups() : 0;
  return w.padded_cols / (w.group_size < 32 ? w.group_size : 32);
}

enum class Epilogue : int32_t {
  store = 0,       // out[m][n]  = y
  add = 1,         // out[m][n] += y                          (residual)
  gated_silu = 2,  // out[m][n'] = silu(gate) * up            panels alternate gate, up;
  gated_gelu = 3,  // the same with tanh-GELU                 rows % 32 == 0, out has rows/2 columns
};

struct GemmOutput {
  float* out;  // [m][stride]; columns from rows (gated: rows/2) on are never touched
  int64_t stride;
  const float* bias;  // [rows] in packed row order, or null
  Epilogue epilogue;
};

// GEMM, packing and quantization of activations: kernels/gemm*.h, kernels/quantize*.h
struct GemmKernels {
  // Bytes of one activation row, a multiple of 64.
  int64_t (*activation_bytes)(WeightFormat format, int64_t padded_cols);
  // Packs panels [panel0, panel1) of a matrix of w's shape into data (and, if rows are scaled,
  // scales), which are those of the whole matrix. source: f32 [..][cols], its first row is row
  // panel0 * 16, row-major and dense; rows from w.rows on are not read: they become zero. bf16 is
  // rounded to nearest even, int8 and int4 to nearest (half to even), symmetric: int8 absmax/127
  // per row, or per (row, group) and rounded to f16, in [-127, 127]; int4 per (row, group) the
  // scale of either sign, rounded to f16, that errs least of a few (quantize_weights.cpp), in [-8,
  // 7]. Groups need even bounds.
  void (*pack)(const PackedMatrix& w, uint8_t* data, float* scales, const float* source,
               int64_t panel0, int64_t panel1);
  // out rows [first_row, first_row + rows) from x [rows][x_stride], as a matrix of w's shape reads
  // them (its pointers are not used); columns cols..padded_cols
  // become zero. int8 and int4: absmax/127 per row, or (row, group); half to even. A row (group)
  // whose absmax is under 2^-100 becomes zero; infinities and NaN come out of `gemm` as NaN.
  void (*prepare)(const PackedMatrix& w, const float* x, int64_t x_stride, int64_t rows,
                  const Activations& out, int64_t first_row);
  // y[m][n] = sum over k of x[m][k] w[n][k] (+ bias[n]) for rows [m0, m1) x panels
  // [panel0, panel1), through the epilogue into out. Groups of integers and gated epilogues need
  // even panel bounds. Allocates nothing.
  void (*gemm)(const PackedMatrix& w, const Activations& a, int64_t m0, int64_t m1, int64_t panel0,
               int64_t panel1, const GemmOutput& out);
};

// The vector functions of kernels/simd_math.h, for tests.
enum class VectorFunction : int32_t {
  exp = 0,
  tanh = 1,
  sigmoid = 2,
  silu = 3,
  gelu_tanh = 4,
  round_bf16 = 5,  // to bf16 and back
  round_f16 = 6,   // to f16 and back
};

struct KernelTable {
  const char* name;
  GemmKernels gemm;
  LayerKernels layers;
  SamplingKernels sampling;
  ProbeKernels probe;
  void (*evaluate)(VectorFunction function, const float* x, float* y, int64_t count);
};

}  // namespace trimtab
