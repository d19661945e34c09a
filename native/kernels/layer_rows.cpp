// What works on whole rows: embedding, norms, rotary embedding, gate, soft cap.
#include "kernels/layer_functions.h"

namespace trimtab::TRIMTAB_ISA {
namespace {

TRIMTAB_INLINE int tail_count(int64_t left) {
  return left < kLanes ? static_cast<int>(left) : kLanes;
}

// Sum of squares in four interleaved accumulators: a fixed order for a given number of columns.
float sum_of_squares(const float* x, int64_t cols) {
  F32x16 sums[4] = {zero_f32(), zero_f32(), zero_f32(), zero_f32()};
  int64_t c = 0;
  for (; c + 4 * kLanes <= cols; c += 4 * kLanes)
    for (int i = 0; i < 4; ++i) {
      const F32x16 v = load(x + c + i * kLanes);
      sums[i] = fma(v, v, sums[i]);
    }
  for (int i = 0; c < cols; c += kLanes, ++i) {
    const F32x16 v = load_tail(x + c, tail_count(cols - c));
    sums[i] = fma(v, v, sums[i]);
  }
  return reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

}  // namespace

void embed(EmbeddingFormat format, const void* row, int64_t cols, float scale, float* out) {
  const F32x16 factor = set1(scale);
  for (int64_t c = 0; c < cols; c += kLanes) {
    const int count = tail_count(cols - c);
    const F32x16 x = format == EmbeddingFormat::f32
                         ? load_tail(static_cast<const float*>(row) + c, count)
                         : load_bf16_tail(static_cast<const uint16_t*>(row) + c, count);
    store_tail(out + c, mul(x, factor), count);
  }
}

void rms_norm(const float* x, int64_t x_stride, int64_t rows, int64_t cols, const float* weight,
              float epsilon, float* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows; ++r, x += x_stride, out += out_stride) {
    const float mean = sum_of_squares(x, cols) / static_cast<float>(cols);
    const F32x16 factor = set1(1.0f / __builtin_sqrtf(mean + epsilon));
    for (int64_t c = 0; c < cols; c += kLanes) {
      const int count = tail_count(cols - c);
      const F32x16 y = mul(mul(load_tail(x + c, count), factor), load_tail(weight + c, count));
      store_tail(out + c, y, count);
    }
  }
}

void add_rows(const float* x, int64_t x_stride, int64_t rows, int64_t cols, float* sum,
              int64_t sum_stride) {
  for (int64_t r = 0; r < rows; ++r, x += x_stride, sum += sum_stride)
    for (int64_t c = 0; c < cols; c += kLanes) {
      const int count = tail_count(cols - c);
      store_tail(sum + c, add(load_tail(sum + c, count), load_tail(x + c, count)), count);
    }
}

void rope(float* x, int64_t heads, int64_t head_dim, int64_t half, const float* cosines,
          const float* sines) {
  for (int64_t h = 0; h < heads; ++h, x += head_dim)
    for (int64_t i = 0; i < half; i += kLanes) {
      const int count = tail_count(half - i);
      const F32x16 a = load_tail(x + i, count), b = load_tail(x + half + i, count);
      const F32x16 c = load_tail(cosines + i, count), s = load_tail(sines + i, count);
      store_tail(x + i, sub(mul(a, c), mul(b, s)), count);
      store_tail(x + half + i, add(mul(b, c), mul(a, s)), count);
    }
}

void gate(bool gelu, const float* up, int64_t count, float* x) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int lanes = tail_count(count - i);
    const F32x16 v = load_tail(x + i, lanes);
    store_tail(x + i, mul(gelu ? gelu_tanh(v) : silu(v), load_tail(up + i, lanes)), lanes);
  }
}

void softcap(float* x, int64_t count, float cap) {
  const F32x16 scale = set1(cap);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int lanes = tail_count(count - i);
    store_tail(x + i, mul(tanh(div(load_tail(x + i, lanes), scale)), scale), lanes);
  }
}

}  // namespace trimtab::TRIMTAB_ISA
