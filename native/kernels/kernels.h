// The table of kernels that one ISA path offers. The same sources are compiled once per path
// (kernels/table.cpp, with the path's compiler flags) on top of kernels/simd_<isa>.h; core/isa.cpp
// picks a table at run time. Nothing here knows of Python, threads or models.
//
// The law (DESIGN.md section 5): an output element's accumulation order is fixed by the matrix
// shape alone. No kernel may let it depend on the number of rows, on the row or panel range of a
// call, or on which thread runs it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trimtab {

enum class WeightFormat : int32_t { f32 = 0, bf16 = 1, int8 = 2, int4 = 3 };
enum class KVFormat : int32_t { f32 = 0, bf16 = 1, int8 = 2 };

constexpr int64_t kPanel = 16;  // output columns of one micro-panel: one 512-bit vector of int32

// A weight matrix [rows (N, outputs), cols (K, inputs)] in the order in which the kernels read it.
// N is padded to panels (int4: pairs of panels), K to the format's unit; padding is zero weight.
//   f32   [N/16][K][16]                           f32
//   bf16  [N/16][K/2][16][2]                      bf16
//   int8  [N/16][K/4][16][4]                      s8, in [-127, 127]
//   int4  [N/32][K/g] { f16 scale[32]; u8 nibble[g/4][16][4] }   low nibble: panel 0 of the pair,
//         high nibble: panel 1; stored value = weight + 8, scale already rounded to f16
struct PackedMatrix {
  WeightFormat format;
  int32_t group_size;   // int4 only
  int64_t rows, cols;   // logical N, K
  int64_t padded_rows;  // multiple of 16 (int4: 32)
  int64_t padded_cols;  // multiple of 1 / 2 / 4 / group_size
  const uint8_t* data;  // 64-byte aligned
  const float* scales;  // int8: [padded_rows]
  const int32_t* sums;  // int8: [padded_rows] sum over k of the stored weights
};

// Activation rows as the kernels of one weight format read them. Row stride is `stride` elements.
//   f32: float.  bf16: bf16 bits.  int8: s8 with one scale a row.
//   int4: s8 with one scale and one sum of the s8 values for each (row, group).
struct Activations {
  void* data;
  float* scales;   // int8 [rows]; int4 [rows][padded_cols / group]
  int32_t* sums;   // int4 [rows][padded_cols / group]
  int64_t stride;  // = padded_cols of the matrices that read it
};

enum class Epilogue : int32_t {
  store = 0,       // out[m][n]  = y
  add = 1,         // out[m][n] += y                          (residual)
  gated_silu = 2,  // out[m][n'] = silu(gate) * up            panels alternate gate, up
  gated_gelu = 3,  // the same with tanh-GELU;                out has rows/2 columns
};

struct GemmOutput {
  float* out;  // [m][stride]
  int64_t stride;
  const float* bias;  // [padded_rows] in packed row order, or null
  Epilogue epilogue;
};

// GEMM, packing and quantization of activations: kernels/gemm*.h
struct GemmKernels {
  // bytes that the packed data of a matrix needs (data only; int8 scales and sums are separate)
  // pack panels [panel0, panel1) of `w` (row-major f32 rows [panel1*16 - panel0*16 ...][cols],
  // `row(n)` order is the caller's) into dst; rows beyond `rows` are zero. int8/int4 are rounded to
  // nearest (half to even), symmetric: int8 absmax/127 per row; int4 absmax/7 per (row, group), in
  // [-8, 7].
  void (*pack)(PackedMatrix& w, uint8_t* data, float* scales, int32_t* sums, const float* source,
               int64_t panel0, int64_t panel1);
  // out.data rows [0, rows) from x [rows][x_stride]; columns cols..padded_cols become zero
  void (*prepare)(WeightFormat format, int32_t group_size, const float* x, int64_t x_stride,
                  int64_t rows, int64_t cols, const Activations& out, int64_t first_row);
  // rows [m0, m1) x panels [panel0, panel1); int4 and gated epilogues need even panel bounds
  void (*gemm)(const PackedMatrix& w, const Activations& a, int64_t m0, int64_t m1, int64_t panel0,
               int64_t panel1, const GemmOutput& out);
};

}  // namespace trimtab
