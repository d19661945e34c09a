// From sums to the output: scale (int8), bias, then store, add, or gate.
#pragma once

#include "kernels/gemm_tiles.h"
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace trimtab::TRIMTAB_ISA {

// Rows [0, rows) of sums, panels [panel, panel + panels), to rows from m on.
struct Sums {
  float* values;  // [rows][kSumStride]
  int64_t rows, m, panel;
  int panels;
};

// int8: y = float(sum) * (activation scale * weight scale), in place.
TRIMTAB_INLINE void scale_int8(const int32_t* integers, const float* activation_scales,
                               const float* weight_scales, const Sums& sums) {
  for (int64_t r = 0; r < sums.rows; ++r) {
    const F32x16 scale = set1(activation_scales[sums.m + r]);
    for (int p = 0; p < sums.panels; ++p) {
      int64_t at = r * kSumStride + p * kLanes;
      F32x16 factor = mul(scale, load(weight_scales + (sums.panel + p) * kPanel));
      store(sums.values + at, mul(to_f32(load(integers + at)), factor));
    }
  }
}

TRIMTAB_INLINE void write_plain(const Sums& sums, const PackedMatrix& w, const GemmOutput& out) {
  for (int p = 0; p < sums.panels; ++p) {
    int64_t n = (sums.panel + p) * kPanel, left = w.rows - n;
    if (left <= 0) break;
    int count = left < kLanes ? static_cast<int>(left) : kLanes;
    F32x16 bias = out.bias != nullptr ? load_tail(out.bias + n, count) : zero_f32();
    for (int64_t r = 0; r < sums.rows; ++r) {
      F32x16 y = load(sums.values + r * kSumStride + p * kLanes);
      if (out.bias != nullptr) y = add(y, bias);
      float* target = out.out + (sums.m + r) * out.stride + n;
      if (out.epilogue == Epilogue::add) y = add(load_tail(target, count), y);
      store_tail(target, y, count);
    }
  }
}

TRIMTAB_INLINE void write_gated(const Sums& sums, const GemmOutput& out) {
  for (int p = 0; p < sums.panels; p += 2) {
    int64_t n = (sums.panel + p) * kPanel;
    for (int64_t r = 0; r < sums.rows; ++r) {
      const float* y = sums.values + r * kSumStride + p * kLanes;
      F32x16 gate = load(y), up = load(y + kLanes);
      if (out.bias != nullptr) {
        gate = add(gate, load(out.bias + n));
        up = add(up, load(out.bias + n + kPanel));
      }
      gate = out.epilogue == Epilogue::gated_silu ? silu(gate) : gelu_tanh(gate);
      store(out.out + (sums.m + r) * out.stride + n / 2, mul(gate, up));
    }
  }
}

TRIMTAB_INLINE void write_output(const Sums& sums, const PackedMatrix& w, const GemmOutput& out) {
  if (out.epilogue == Epilogue::gated_silu || out.epilogue == Epilogue::gated_gelu) {
    write_gated(sums, out);
  } else {
    write_plain(sums, w, out);
  }
}

}  // namespace trimtab::TRIMTAB_ISA
