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

enum class WeightFormat : int32_t { f32 = 0, bf16 = 1, int8 = 2, int4 = 3 };

constexpr int64_t kPanel = 16;  // output columns of one micro-panel: one 512-bit vector of int32

// Most input columns of a matrix: what int8 sums hold in 32 bits.
constexpr int64_t kMaxCols = 131072;

// A weight matrix [rows (N, outputs), cols (K, inputs)] in the order in which the kernels read it,
// the same bytes on every ISA path. N is padded to panels (int4: pairs of panels), K to the
// format's unit; padding is zero weight.
//   f32   [N/16][K][16]                           f32
//   bf16  [N/16][K/2][16][2]                      bf16
//   int8  [N/16][K/4][16][4]                      u8: weight + 128, weight in [-127, 127]
//         in groups: [N/32][K/g] { f16 scale[32]; u8 weight[g/4][2][16][4] }   panel 0, panel 1
//   int4  [N/32][K/g] { f16 scale[32]; u8 nibble[g/4][16][4] }   low nibble: panel 0 of the pair,
//         high nibble: panel 1; stored value = weight + 8, scale already rounded to f16
struct PackedMatrix {
  WeightFormat format;
  int32_t group_size;   // int4, int8: columns that share a scale; int8: 0 if a whole row does
  int64_t rows, cols;   // logical N, K
  int64_t padded_rows;  // multiple of 16 (in groups: 32)
  int64_t padded_cols;  // multiple of 1 / 2 / 4 / group_size
  const uint8_t* data;  // 64-byte aligned, packed_bytes(matrix) long
  const float* scales;  // int8 without groups: [padded_rows]

  TRIMTAB_SHARED int64_t groups() const { return group_size == 0 ? 1 : padded_cols / group_size; }
  TRIMTAB_SHARED bool scaled_rows() const {
    return format == WeightFormat::int8 && group_size == 0;
  }
};

constexpr TRIMTAB_SHARED int64_t round_up(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

// A PackedMatrix of that shape, its pointers still null.
constexpr TRIMTAB_SHARED PackedMatrix packed_shape(WeightFormat format, int32_t group_size,
                                                   int64_t rows, int64_t cols) {
  const bool integer = format == WeightFormat::int4 || format == WeightFormat::int8;
  const int32_t group = integer ? group_size : 0;
  const int64_t unit = group != 0                     ? group
                       : format == WeightFormat::int8 ? 4
                       : format == WeightFormat::bf16 ? 2
                                                      : 1;
  return {format,
          group,
          rows,
          cols,
          round_up(rows, group != 0 ? 2 * kPanel : kPanel),
          round_up(cols, unit),
          nullptr,
          nullptr};
}

// Bytes of the packed data (scales of rows are separate).
constexpr TRIMTAB_SHARED int64_t packed_bytes(const PackedMatrix& w) {
  const int64_t elements = w.padded_rows * w.padded_cols;
  const int64_t scales = w.group_size == 0 ? 0 : elements / w.group_size * 2;
  switch (w.format) {
    case WeightFormat::f32:
      return elements * 4;
    case WeightFormat::bf16:
      return elements * 2;
    case WeightFormat::int8:
      return elements + scales;
    case WeightFormat::int4:
      return elements / 2 + scales;
  }
  return 0;
}

// Activation rows as the kernels of one weight format on one ISA path read them: opaque to
// everything but `prepare` and `gemm`.
//   f32   float
//   bf16  values rounded to bf16: pairs of bf16 (avx512), floats (other paths)
//   int8  one byte (avx2: two) a value, one scale for each (row, group) or row
//   int4  s8, one scale for each (row, group)
// and, of int8 and int4, what integer sums begin with, so that stored weights count as weights.
struct Activations {
  uint8_t* data;      // rows row_bytes apart, 64-byte aligned
  int64_t row_bytes;  // GemmKernels::activation_bytes(format, padded_cols), or more
  float* scales;      // int8, int4: [rows][PackedMatrix::groups()]
  int32_t* starts;    // int8: likewise; int4: [rows][int4_starts(padded_cols)]
};

constexpr TRIMTAB_SHARED int64_t int4_starts(int64_t padded_cols) { return padded_cols / 32; }

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
  // [panel0, panel1), through the epilogue into out. Groups and gated epilogues need even panel
  // bounds. Allocates nothing.
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
