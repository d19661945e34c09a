// Activation rows in the form that the GEMM of each weight format reads.
#include "kernels/quantize.h"

namespace trimtab::TRIMTAB_ISA {

namespace {

void prepare_f32(const float* x, int64_t cols, uint8_t* row) {
  std::memcpy(row, x, static_cast<size_t>(cols) * sizeof(float));
}

void prepare_bf16(const float* x, int64_t cols, uint8_t* row) {
  for (int64_t k = 0; k < cols; k += kLanes) {
    F32x16 values = load_row(x, k, cols);
    if constexpr (kBf16Steps == 1) {
      store_bf16(reinterpret_cast<uint16_t*>(row) + k, values);
    } else {
      store(reinterpret_cast<float*>(row) + k, round_to_bf16(values));
    }
  }
}

struct Scaling {
  float scale, inverse;
};

Scaling scaling(float largest) {
  if (largest < kSmallestAbsmax) return {0.0f, 0.0f};
  if (!(largest <= 3.402823466e38f)) return {__builtin_nanf(""), 0.0f};
  return {largest / 127.0f, 127.0f / largest};
}

// Calls store(k, q) for the quantized x[first, last), 16 at a time; their sum, k modulo 16.
template <class Store>
TRIMTAB_INLINE I32x16 quantize(const float* x, int64_t first, int64_t last, int64_t cols,
                               float inverse, const Store& store) {
  const F32x16 factor = set1(inverse);
  I32x16 sum = zero_i32();
  for (int64_t k = first; k < last; k += kLanes) {
    const I32x16 q = to_i32(mul(load_row(x, k, cols), factor));
    sum = add(sum, q);
    store(k, q);
  }
  return sum;
}

float sum_of(I32x16 lanes) {
  int32_t values[kLanes], sum = 0;
  store(values, lanes);
  for (int32_t value : values) sum += value;
  return static_cast<float>(sum);
}

// Columns share a scale by group_size; the last group of `cols` may be shorter. `sums` may be null.
void prepare_int8(const float* x, int64_t cols, int64_t group_size, uint8_t* row, float* scales,
                  int32_t* starts, float* sums) {
  for (int64_t first = 0; first < cols; first += group_size) {
    const Scaling s = scaling(absmax(x, first, first + group_size, cols));
    *scales++ = s.scale;
    const I32x16 lanes =
        quantize(x, first, first + group_size, cols, s.inverse,
                 [&](int64_t k, I32x16 q) TRIMTAB_INLINE_LAMBDA { store_int8(row, k, q); });
    *starts++ = int8_start(lanes);
    if (sums != nullptr) *sums++ = sum_of(lanes) * s.scale;
  }
}

void prepare_int4(const float* x, int64_t cols, int64_t group_size, uint8_t* row, float* scales,
                  int32_t* starts, float* sums) {
  constexpr int64_t kMaxChunk = 4 * kU4Quads;
  const int64_t chunk = group_size < kMaxChunk ? group_size : kMaxChunk;
  for (int64_t first = 0; first < cols; first += group_size) {
    const Scaling s = scaling(absmax(x, first, first + group_size, cols));
    *scales++ = s.scale;
    I32x16 group = zero_i32();
    for (int64_t k = first; k < first + group_size; k += chunk) {
      const I32x16 lanes = quantize(x, k, k + chunk, cols, s.inverse,
                                    [&](int64_t at, I32x16 q) TRIMTAB_INLINE_LAMBDA {
                                      store_s8(reinterpret_cast<int8_t*>(row) + at, q);
                                    });
      *starts++ = u4_start(lanes);
      group = add(group, lanes);
    }
    if (sums != nullptr) *sums++ = sum_of(group) * s.scale;
  }
}

}  // namespace

// An odd number of cache lines: rows that lie a power of two apart would share the sets of a cache.
int64_t activation_bytes(WeightFormat format, int64_t padded_cols) {
  int64_t width = kInt8Steps;
  if (format == WeightFormat::f32 || format == WeightFormat::fp8) width = 4;
  if (format == WeightFormat::bf16) width = kBf16Steps == 1 ? 2 : 4;
  if (format == WeightFormat::int4) width = 1;
  return (round_up(padded_cols * width, 64) / 64 | 1) * 64;
}

void prepare(const PackedMatrix& w, const float* x, int64_t x_stride, int64_t rows,
             const Activations& out, int64_t first_row) {
  const int64_t groups = w.groups();
  for (int64_t r = 0; r < rows; ++r) {
    const float* source = x + r * x_stride;
    int64_t m = first_row + r;
    uint8_t* row = out.data + m * out.row_bytes;
    float* sums = w.offset_format == OffsetFormat::none ? nullptr : out.sums + m * groups;
    switch (w.format) {
      case WeightFormat::f32:
      case WeightFormat::fp8:
        prepare_f32(source, w.cols, row);
        break;
      case WeightFormat::bf16:
        prepare_bf16(source, w.cols, row);
        break;
      case WeightFormat::int8:
      case WeightFormat::int5:
      case WeightFormat::int6:
        prepare_int8(source, w.cols, w.group_size != 0 ? w.group_size : w.padded_cols, row,
                     out.scales + m * groups, out.starts + m * groups, sums);
        break;
      case WeightFormat::int4:
        prepare_int4(source, w.cols, w.group_size, row, out.scales + m * groups,
                     out.starts + m * activation_starts(w), sums);
        break;
    }
  }
}

}  // namespace trimtab::TRIMTAB_ISA
