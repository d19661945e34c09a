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

void pack_int8(const PanelSource& source, int64_t padded_cols, uint8_t* panel, float* scales,
               int32_t* sums) {
  for (int64_t n = 0; n < kPanel; ++n) {
    float largest = source.absmax(n, 0, source.cols);
    bool zero = largest < kSmallestAbsmax;
    scales[n] = zero ? 0.0f : largest / 127.0f;
    const F32x16 scale = set1(scales[n]);
    int32_t sum = 0;
    for (int64_t k = 0; k < padded_cols; k += kLanes) {
      int8_t values[kLanes];
      store_s8(values, zero ? zero_i32() : to_i32(div(source.at(n, k), scale)));
      int64_t count = padded_cols - k < kLanes ? padded_cols - k : kLanes;
      for (int64_t i = 0; i < count; ++i) {
        panel[((k + i) / 4 * kPanel + n) * 4 + (k + i) % 4] = static_cast<uint8_t>(values[i]);
        sum += values[i];
      }
    }
    sums[n] = sum;
  }
}

// One panel of one group: its half of the block's scales and of its nibbles (shift 0 or 4), which
// must be zero before.
void pack_int4_half(const PanelSource& source, int64_t first, int32_t group_size, uint8_t* block,
                    int shift) {
  float scales[kPanel];
  for (int64_t n = 0; n < kPanel; ++n) {
    float scale = source.absmax(n, first, first + group_size) / 7.0f;
    scales[n] = scale > 65504.0f ? 65504.0f : scale;  // the largest f16
  }
  uint16_t* stored = reinterpret_cast<uint16_t*>(block) + (shift == 0 ? 0 : kPanel);
  store_f16(stored, load(scales));
  store(scales, load_f16(stored));
  uint8_t* nibbles = block + 2 * kPanel * sizeof(uint16_t);
  const F32x16 lowest = set1(-8.0f), highest = set1(7.0f);
  for (int64_t n = 0; n < kPanel; ++n) {
    const F32x16 scale = set1(scales[n]);
    for (int64_t k = 0; k < group_size; k += kLanes) {
      int32_t values[kLanes];
      F32x16 q = scales[n] == 0.0f ? zero_f32() : div(source.at(n, first + k), scale);
      store(values, add(to_i32(max(lowest, min(highest, q))), set1(8)));
      for (int64_t i = 0; i < kLanes; ++i) {
        uint8_t bits = static_cast<uint8_t>((values[i] & 15) << shift);
        nibbles[((k + i) / 4 * kPanel + n) * 4 + (k + i) % 4] |= bits;
      }
    }
  }
}

void pack_int4(const PackedMatrix& w, uint8_t* data, const float* source, int64_t panel0,
               int64_t panel1) {
  int64_t groups = w.padded_cols / w.group_size;
  int64_t block_bytes = 2 * kPanel * 2 + static_cast<int64_t>(w.group_size) * kPanel;
  for (int64_t panel = panel0; panel < panel1; ++panel) {
    int64_t left = w.rows - panel * kPanel;
    PanelSource rows = {source + (panel - panel0) * kPanel * w.cols,
                        left < 0        ? 0
                        : left > kPanel ? kPanel
                                        : left,
                        w.cols};
    for (int64_t g = 0; g < groups; ++g) {
      uint8_t* block = data + (panel / 2 * groups + g) * block_bytes;
      if (panel % 2 == 0) std::memset(block, 0, static_cast<size_t>(block_bytes));
      pack_int4_half(rows, g * w.group_size, w.group_size, block, panel % 2 == 0 ? 0 : 4);
    }
  }
}

}  // namespace

void pack(const PackedMatrix& w, uint8_t* data, float* scales, int32_t* sums, const float* source,
          int64_t panel0, int64_t panel1) {
  if (w.format == WeightFormat::int4) {
    pack_int4(w, data, source, panel0, panel1);
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
      pack_int8(rows, w.padded_cols, out, scales + n, sums + n);
    }
  }
}

}  // namespace trimtab::TRIMTAB_ISA
