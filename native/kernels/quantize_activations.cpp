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

// Quantizes x[first, last) into s8 (^ flip) and returns the sum of the s8 values.
int32_t quantize(const float* x, int64_t first, int64_t last, int64_t cols, float inverse,
                 uint8_t flip, uint8_t* row) {
  const F32x16 factor = set1(inverse);
  const I32x16 flipped = set1(static_cast<int32_t>(flip));
  I32x16 sum = zero_i32();
  for (int64_t k = first; k < last; k += kLanes) {
    I32x16 q = to_i32(mul(load_row(x, k, cols), factor));
    sum = add(sum, q);
    // q ^ 0x80 as a byte is q + 128 as unsigned; sign bits above it must follow for the saturation
    if (flip != 0) q = shift_right_sign<24>(shift_left<24>(bit_xor(q, flipped)));
    store_s8(reinterpret_cast<int8_t*>(row) + k, q);
  }
  return reduce_add(sum);
}

}  // namespace

int64_t activation_bytes(WeightFormat format, int64_t padded_cols) {
  int64_t width = format == WeightFormat::f32    ? 4
                  : format == WeightFormat::bf16 ? (kBf16Steps == 1 ? 2 : 4)
                                                 : 1;
  return round_up(padded_cols * width, 64);
}

void prepare(WeightFormat format, int32_t group_size, const float* x, int64_t x_stride,
             int64_t rows, int64_t cols, const Activations& out, int64_t first_row) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* source = x + r * x_stride;
    int64_t m = first_row + r;
    uint8_t* row = out.data + m * out.row_bytes;
    switch (format) {
      case WeightFormat::f32:
        prepare_f32(source, cols, row);
        break;
      case WeightFormat::bf16:
        prepare_bf16(source, cols, row);
        break;
      case WeightFormat::int8: {
        Scaling s = scaling(absmax(source, 0, cols, cols));
        out.scales[m] = s.scale;
        quantize(source, 0, round_up(cols, 4), cols, s.inverse, kInt8Flip, row);
        break;
      }
      case WeightFormat::int4: {
        int64_t groups = round_up(cols, group_size) / group_size;
        for (int64_t g = 0; g < groups; ++g) {
          int64_t first = g * group_size, last = first + group_size;
          Scaling s = scaling(absmax(source, first, last, cols));
          out.scales[m * groups + g] = s.scale;
          out.sums[m * groups + g] = quantize(source, first, last, cols, s.inverse, 0, row);
        }
        break;
      }
    }
  }
}

}  // namespace trimtab::TRIMTAB_ISA
