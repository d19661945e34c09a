// Weights in the order in which the GEMM of each format reads them: PackedMatrix in kernels.h.
#include "kernels/quantize.h"

namespace trimtab::TRIMTAB_ISA {

namespace {

// The rows of one panel in a source of `cols` columns; absent rows read as zero.
struct PanelSource {
  const float* first;
  int64_t rows, cols;  // rows: 0..16 present

  F32x16 at(int64_t row, int64_t k) const {
    return row < rows ? load_row(first + row * cols, k, cols) : zero_f32();
  }
  float absmax(int64_t row, int64_t k0, int64_t k1) const {
    return row < rows ? TRIMTAB_ISA::absmax(first + row * cols, k0, k1, cols) : 0.0f;
  }
};

void pack_f32(const PanelSource& source, int64_t padded_cols, uint8_t* panel) {
  float* out = reinterpret_cast<float*>(panel);
  for (int64_t k = 0; k < padded_cols; ++k) {
    for (int64_t n = 0; n < kPanel; ++n) {
      out[k * kPanel + n] = n < source.rows ? source.first[n * source.cols + k] : 0.0f;
    }
  }
}

void pack_bf16(const PanelSource& source, int64_t padded_cols, uint8_t* panel) {
  uint16_t* out = reinterpret_cast<uint16_t*>(panel);
  for (int64_t n = 0; n < kPanel; ++n) {
    for (int64_t k = 0; k < padded_cols; k += kLanes) {
      uint16_t values[kLanes];
      store_bf16(values, source.at(n, k));
      int64_t count = padded_cols - k < kLanes ? padded_cols - k : kLanes;
      for (int64_t i = 0; i < count; ++i) {
        out[((k + i) / 2 * kPanel + n) * 2 + (k + i) % 2] = values[i];
      }
    }
  }
}

// Columns [first, last) of row n of a panel, divided by the scale; `panel` holds column `first`,
// and a quad of columns follows another after quad_bytes.
void pack_int8_row(const PanelSource& source, int64_t n, int64_t first, int64_t last, float scale,
                   uint8_t* panel, int64_t quad_bytes) {
  for (int64_t k = first; k < last; k += kLanes) {
    int32_t values[kLanes];
    const F32x16 q = scale == 0.0f ? zero_f32() : div(source.at(n, k), set1(scale));
    store(values, to_i32(max(min(q, set1(127.0f)), set1(-127.0f))));
    const int64_t count = last - k < kLanes ? last - k : kLanes;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = k - first + i;
      panel[at / 4 * quad_bytes + n * 4 + at % 4] = static_cast<uint8_t>(values[i] + 128);
    }
  }
}

void pack_int8(const PanelSource& source, int64_t padded_cols, uint8_t* panel, float* scales) {
  for (int64_t n = 0; n < kPanel; ++n) {
    const float largest = source.absmax(n, 0, source.cols);
    scales[n] = largest < kSmallestAbsmax ? 0.0f : largest / 127.0f;
    pack_int8_row(source, n, 0, padded_cols, scales[n], panel, 64);
  }
}

// One panel of one group of a pair: `block` is the pair's.
void pack_int8_half(const PanelSource& source, int64_t first, int32_t group_size, uint8_t* block,
                    int half) {
  float scales[kPanel];
  for (int64_t n = 0; n < kPanel; ++n) {
    const float scale = source.absmax(n, first, first + group_size) / 127.0f;
    scales[n] = scale > 65504.0f ? 65504.0f : scale;
  }
  uint16_t* stored = reinterpret_cast<uint16_t*>(block) + half * kPanel;
  store_f16(stored, load(scales));
  store(scales, load_f16(stored));
  uint8_t* panel = block + 2 * kPanel * sizeof(uint16_t) + half * 64;
  for (int64_t n = 0; n < kPanel; ++n)
    pack_int8_row(source, n, first, first + group_size, scales[n], panel, 128);
}

// Candidates for the scale of a group: absmax over these, rounded to f16. Those of negative sign
// use the eighth value below zero for the largest weight; those above 7.5 clip it a little, which
// is often less than what the finer steps gain.
constexpr int kScaleCandidates = 8;
constexpr float kScaleDivisors[kScaleCandidates] = {7.0f, -7.0f, 7.5f, -7.5f,
                                                    8.0f, -8.0f, 8.5f, -8.5f};

TRIMTAB_INLINE I32x16 quantize_int4(F32x16 weights, float scale) {
  const F32x16 q = scale == 0.0f ? zero_f32() : div(weights, set1(scale));
  return to_i32(max(set1(-8.0f), min(set1(7.0f), q)));
}

// The candidate of least squared error over columns [first, first + group_size) of a row, the first
// of equals. The order of additions is the same on every path: numerics/quantization.py.
float int4_scale(const PanelSource& source, int64_t row, int64_t first, int32_t group_size) {
  const float largest = source.absmax(row, first, first + group_size);
  float candidates[kLanes] = {};
  for (int i = 0; i < kScaleCandidates; ++i) {
    const float scale = largest / kScaleDivisors[i];
    candidates[i] = scale > 65504.0f ? 65504.0f : scale < -65504.0f ? -65504.0f : scale;
  }
  uint16_t rounded[kLanes];
  store_f16(rounded, load(candidates));
  store(candidates, load_f16(rounded));
  float best = candidates[0], least = 0.0f;
  for (int i = 0; i < kScaleCandidates; ++i) {
    F32x16 sum = zero_f32();
    for (int64_t k = first; k < first + group_size; k += kLanes) {
      const F32x16 weights = source.at(row, k);
      const F32x16 stored = mul(to_f32(quantize_int4(weights, candidates[i])), set1(candidates[i]));
      const F32x16 error = sub(weights, stored);
      sum = add(sum, mul(error, error));
    }
    const float error = reduce_add(sum);
    if (i == 0 || error < least) {
      least = error;
      best = candidates[i];
    }
  }
  return best;
}

// One panel of one group: its half of the block's scales and of its nibbles (shift 0 or 4), which
// must be zero before.
void pack_int4_half(const PanelSource& source, int64_t first, int32_t group_size, uint8_t* block,
                    int shift) {
  float scales[kPanel];
  for (int64_t n = 0; n < kPanel; ++n) scales[n] = int4_scale(source, n, first, group_size);
  store_f16(reinterpret_cast<uint16_t*>(block) + (shift == 0 ? 0 : kPanel), load(scales));
  uint8_t* nibbles = block + 2 * kPanel * sizeof(uint16_t);
  for (int64_t n = 0; n < kPanel; ++n) {
    for (int64_t k = 0; k < group_size; k += kLanes) {
      int32_t values[kLanes];
      store(values, add(quantize_int4(source.at(n, first + k), scales[n]), set1(8)));
      for (int64_t i = 0; i < kLanes; ++i) {
        uint8_t bits = static_cast<uint8_t>((values[i] & 15) << shift);
        nibbles[((k + i) / 4 * kPanel + n) * 4 + (k + i) % 4] |= bits;
      }
    }
  }
}

void pack_groups(const PackedMatrix& w, uint8_t* data, const float* source, int64_t panel0,
                 int64_t panel1) {
  const int64_t groups = w.groups();
  const int64_t block_bytes = packed_bytes(w) / (w.padded_rows / (2 * kPanel)) / groups;
  for (int64_t panel = panel0; panel < panel1; ++panel) {
    const int64_t left = w.rows - panel * kPanel;
    const PanelSource rows = {source + (panel - panel0) * kPanel * w.cols,
                              left < 0        ? 0
                              : left > kPanel ? kPanel
                                              : left,
                              w.cols};
    const int half = static_cast<int>(panel % 2);
    for (int64_t g = 0; g < groups; ++g) {
      uint8_t* block = data + (panel / 2 * groups + g) * block_bytes;
      if (w.format == WeightFormat::int8) {
        pack_int8_half(rows, g * w.group_size, w.group_size, block, half);
        continue;
      }
      if (half == 0) std::memset(block, 0, static_cast<size_t>(block_bytes));
      pack_int4_half(rows, g * w.group_size, w.group_size, block, 4 * half);
    }
  }
}

}  // namespace

void pack(const PackedMatrix& w, uint8_t* data, float* scales, const float* source, int64_t panel0,
          int64_t panel1) {
  if (w.group_size != 0) {
    pack_groups(w, data, source, panel0, panel1);
    return;
  }
  int64_t panel_bytes = packed_bytes(w) / w.padded_rows * kPanel;
  for (int64_t panel = panel0; panel < panel1; ++panel) {
    int64_t n = panel * kPanel, left = w.rows - n;
    PanelSource rows = {source + (panel - panel0) * kPanel * w.cols, left > kPanel ? kPanel : left,
                        w.cols};
    uint8_t* out = data + panel * panel_bytes;
    if (w.format == WeightFormat::f32) {
      pack_f32(rows, w.padded_cols, out);
    } else if (w.format == WeightFormat::bf16) {
      pack_bf16(rows, w.padded_cols, out);
    } else {
      pack_int8(rows, w.padded_cols, out, scales + n);
    }
  }
}

}  // namespace trimtab::TRIMTAB_ISA
