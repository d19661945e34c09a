// Attention of a tile of query rows over the pages of a KV cache: decode, verification and prefill
// are the same code. Keys are walked in tiles of 64 absolute positions; a running softmax keeps
// the largest score and the sum of weights of each row.
//
// All arithmetic is float32: K and V are widened exactly as they are loaded (int8: the key's scale
// multiplies the score, the value's scale the weight). Each score accumulates over d in ascending
// order, each output over keys in ascending order, whatever the number of rows; a tile of keys that
// a row may not see leaves that row's bits as they are.
#include "kernels/layer_functions.h"

#define TRIMTAB_INLINE_MEMBER inline __attribute__((always_inline))

namespace trimtab::TRIMTAB_ISA {
namespace {

constexpr int kTileBlocks = 4;  // KV blocks of a key tile
constexpr int kTileKeys = kTileBlocks * static_cast<int>(kBlockTokens);
#if defined(TRIMTAB_KERNELS_AVX512)
constexpr int kAccumulators = 8;  // vectors of sums that a micro-kernel keeps in registers
#else
constexpr int kAccumulators = 4;
#endif

// 64 bytes of a tile: the same 16 lanes (tokens of K, columns of V) for kCount consecutive d of K
// or tokens of V. They are widened one at a time, so that few registers hold them.
template <KVFormat format>
struct Unit;

template <>
struct Unit<KVFormat::f32> {
  static constexpr int kCount = 1;
  F32x16 raw;
  explicit TRIMTAB_INLINE_MEMBER Unit(const uint8_t* p)
      : raw(load(reinterpret_cast<const float*>(p))) {}
  TRIMTAB_INLINE_MEMBER F32x16 at(int) const { return raw; }
};

template <>
struct Unit<KVFormat::bf16> {
  static constexpr int kCount = 2;
  I32x16 raw;
  explicit TRIMTAB_INLINE_MEMBER Unit(const uint8_t* p)
      : raw(load(reinterpret_cast<const int32_t*>(p))) {}
  TRIMTAB_INLINE_MEMBER F32x16 at(int i) const {
    if (i == 0) return as_f32(shift_left<16>(raw));
    return as_f32(bit_and(raw, set1(static_cast<int32_t>(0xffff0000u))));
  }
};

template <>
struct Unit<KVFormat::int8> {
  static constexpr int kCount = 4;
  I32x16 raw;
  explicit TRIMTAB_INLINE_MEMBER Unit(const uint8_t* p)
      : raw(load(reinterpret_cast<const int32_t*>(p))) {}
  TRIMTAB_INLINE_MEMBER F32x16 at(int i) const {
    if (i == 0) return to_f32(shift_right_sign<24>(shift_left<24>(raw)));
    if (i == 1) return to_f32(shift_right_sign<24>(shift_left<16>(raw)));
    if (i == 2) return to_f32(shift_right_sign<24>(shift_left<8>(raw)));
    return to_f32(shift_right_sign<24>(raw));
  }
};

// The blocks of one key tile that hold keys anybody wants.
struct KeyTile {
  const uint8_t* blocks[kTileBlocks];
  int first, last;   // of them
  int64_t position;  // of the tile's first key
};

struct State {
  const AttentionTile& tile;
  PartialAttention partial;
  float scores[kTileRows * kTileKeys];  // then weights
  float largest[kTileRows];             // the row's maximum, or 0 while it is -inf
  float decay[kTileRows];               // what the earlier tiles are multiplied by
};

// Scores of rows [row, row + R) with blocks [block, block + C).
template <KVFormat format, int R, int C>
TRIMTAB_INLINE void score_block(State& state, const KeyTile& keys, int64_t row, int block) {
  using Keys = Unit<format>;
  const int64_t dim = state.tile.tile.head_dim;
  const float* query = state.tile.query + row * dim;
  F32x16 sums[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sums[r][c] = zero_f32();
  for (int64_t d = 0; d < dim; d += Keys::kCount) {
    for (int c = 0; c < C; ++c) {
      const Keys unit(keys.blocks[block + c] + d / Keys::kCount * 64);
      for (int i = 0; i < Keys::kCount; ++i) {
        const F32x16 key = unit.at(i);
        for (int r = 0; r < R; ++r) sums[r][c] = fma(key, set1(query[r * dim + d + i]), sums[r][c]);
      }
    }
  }
  for (int c = 0; c < C; ++c) {
    F32x16 scale = set1(1.0f);
    if (format == KVFormat::int8) scale = load(state.tile.tile.key_scales(keys.blocks[block + c]));
    for (int r = 0; r < R; ++r) {
      const F32x16 score = format == KVFormat::int8 ? mul(sums[r][c], scale) : sums[r][c];
      store(state.scores + (row + r) * kTileKeys + (block + c) * kBlockTokens, score);
    }
  }
}

template <KVFormat format, int R>
TRIMTAB_INLINE void score_rows(State& state, const KeyTile& keys, int64_t row) {
  constexpr int C = kAccumulators / R < kTileBlocks ? kAccumulators / R : kTileBlocks;
  int block = keys.first;
  for (; block + C <= keys.last; block += C) score_block<format, R, C>(state, keys, row, block);
  for (; block < keys.last; ++block) score_block<format, R, 1>(state, keys, row, block);
}

template <KVFormat format>
void score_tile(State& state, const KeyTile& keys) {
  const int64_t rows = state.tile.rows;
  int64_t row = 0;
  for (; row + kAccumulators <= rows; row += kAccumulators)
    score_rows<format, kAccumulators>(state, keys, row);
  if (kAccumulators > 4 && row + 4 <= rows) {
    score_rows<format, 4>(state, keys, row);
    row += 4;
  }
  for (; row + 2 <= rows; row += 2) score_rows<format, 2>(state, keys, row);
  if (row < rows) score_rows<format, 1>(state, keys, row);
}

// Soft cap, mask and the row's new maximum.
void mask_row(State& state, const KeyTile& keys, int64_t row) {
  const AttentionTile& tile = state.tile;
  const int32_t position = tile.positions[row];
  const int64_t oldest = tile.window > 0 ? position - tile.window + 1 : 0;
  const int32_t lanes[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const F32x16 nothing = set1(-__builtin_inff());
  F32x16 largest = nothing;
  for (int block = keys.first; block < keys.last; ++block) {
    float* scores = state.scores + row * kTileKeys + block * kBlockTokens;
    const int64_t key = keys.position + block * kBlockTokens;
    F32x16 score = load(scores);
    if (tile.softcap > 0) {
      const F32x16 cap = set1(tile.softcap);
      score = mul(tanh(div(score, cap)), cap);
    }
    if (key + kBlockTokens - 1 > position || key < oldest) {
      const I32x16 index = add(set1(static_cast<int32_t>(key)), load(lanes));
      score = select(less(set1(position), index), nothing, score);
      score = select(less(index, set1(static_cast<int32_t>(oldest))), nothing, score);
    }
    store(scores, score);
    largest = max(largest, score);
  }
  const float before = state.partial.max[row];
  const float now = reduce_max(largest);
  const float after = now > before ? now : before;
  state.decay[row] = before;
  state.largest[row] = after == -__builtin_inff() ? 0.0f : after;
  state.partial.max[row] = after;
}

// Scores become weights; their sum joins the row's.
template <KVFormat format>
void weigh_row(State& state, const KeyTile& keys, int64_t row) {
  const F32x16 largest = set1(state.largest[row]);
  F32x16 sum = zero_f32();
  for (int block = keys.first; block < keys.last; ++block) {
    float* scores = state.scores + row * kTileKeys + block * kBlockTokens;
    F32x16 weight = exp(sub(load(scores), largest));
    sum = add(sum, weight);
    if (format == KVFormat::int8)
      weight = mul(weight, load(state.tile.tile.key_scales(keys.blocks[block]) + kBlockTokens));
    store(scores, weight);
  }
  state.partial.sum[row] = state.partial.sum[row] * state.decay[row] + reduce_add(sum);
}

// out[r][column + 16 c ..] = out * decay + weights x values
template <KVFormat format, int R, int C>
TRIMTAB_INLINE void value_block(State& state, const KeyTile& keys, int64_t row, int64_t column) {
  using Values = Unit<format>;
  const KVTile& layout = state.tile.tile;
  const int64_t dim = layout.head_dim;
  float* out = state.partial.out + row * dim + column;
  F32x16 sums[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c)
      sums[r][c] = mul(load(out + r * dim + c * kLanes), set1(state.decay[row + r]));
  for (int block = keys.first; block < keys.last; ++block) {
    const uint8_t* values = layout.values(keys.blocks[block]) + column / kLanes * 64;
    const float* weights = state.scores + row * kTileKeys + block * kBlockTokens;
    for (int t = 0; t < kBlockTokens; t += Values::kCount) {
      for (int c = 0; c < C; ++c) {
        const Values unit(values + t / Values::kCount * dim * 4 + c * 64);
        for (int i = 0; i < Values::kCount; ++i) {
          const F32x16 value = unit.at(i);
          for (int r = 0; r < R; ++r)
            sums[r][c] = fma(value, set1(weights[r * kTileKeys + t + i]), sums[r][c]);
        }
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store(out + r * dim + c * kLanes, sums[r][c]);
}

template <KVFormat format, int R>
TRIMTAB_INLINE void value_rows(State& state, const KeyTile& keys, int64_t row) {
  constexpr int C = kAccumulators / R < 4 ? kAccumulators / R : 4;
  const int64_t dim = state.tile.tile.head_dim;
  int64_t column = 0;
  for (; column + C * kLanes <= dim; column += C * kLanes)
    value_block<format, R, C>(state, keys, row, column);
  for (; column < dim; column += kLanes) value_block<format, R, 1>(state, keys, row, column);
}

template <KVFormat format>
void value_tile(State& state, const KeyTile& keys) {
  const int64_t rows = state.tile.rows;
  int64_t row = 0;
  for (; row + kAccumulators <= rows; row += kAccumulators)
    value_rows<format, kAccumulators>(state, keys, row);
  if (kAccumulators > 4 && row + 4 <= rows) {
    value_rows<format, 4>(state, keys, row);
    row += 4;
  }
  for (; row + 2 <= rows; row += 2) value_rows<format, 2>(state, keys, row);
  if (row < rows) value_rows<format, 1>(state, keys, row);
}

// decay = e^(earlier maximum - maximum), all rows at once.
void find_decay(State& state) {
  for (int64_t row = 0; row < kTileRows; row += kLanes)
    store(state.decay + row, exp(sub(load(state.decay + row), load(state.largest + row))));
}

template <KVFormat format>
void attend_format(State& state, int64_t first_key, int64_t last_key) {
  const AttentionTile& tile = state.tile;
  for (int64_t base = first_key / kTileKeys * kTileKeys; base < last_key; base += kTileKeys) {
    KeyTile keys;
    keys.position = base;
    const int64_t begin = first_key > base ? first_key - base : 0;
    const int64_t end = last_key - base < kTileKeys ? last_key - base : kTileKeys;
    keys.first = static_cast<int>(begin / kBlockTokens);
    keys.last = static_cast<int>((end + kBlockTokens - 1) / kBlockTokens);
    for (int block = keys.first; block < keys.last; ++block)
      keys.blocks[block] =
          tile.pool + tile.block_ids[base / kBlockTokens + block] * tile.block_stride;
    score_tile<format>(state, keys);
    for (int64_t row = 0; row < tile.rows; ++row) mask_row(state, keys, row);
    find_decay(state);
    for (int64_t row = 0; row < tile.rows; ++row) weigh_row<format>(state, keys, row);
    value_tile<format>(state, keys);
  }
}

}  // namespace

void attend(const AttentionTile& tile, int64_t first_key, int64_t last_key,
            const PartialAttention& partial) {
  State state{tile, partial, {}, {}, {}};
  for (int64_t row = 0; row < tile.rows; ++row) {
    partial.max[row] = -__builtin_inff();
    partial.sum[row] = 0.0f;
  }
  std::memset(partial.out, 0, static_cast<size_t>(tile.rows * tile.tile.head_dim) * 4);
  switch (tile.tile.format) {
    case KVFormat::f32:
      return attend_format<KVFormat::f32>(state, first_key, last_key);
    case KVFormat::bf16:
      return attend_format<KVFormat::bf16>(state, first_key, last_key);
    case KVFormat::int8:
      return attend_format<KVFormat::int8>(state, first_key, last_key);
  }
}

void merge(int64_t rows, int64_t head_dim, const PartialAttention& partial,
           const PartialAttention& total) {
  float before[kTileRows], added[kTileRows];
  for (int64_t row = 0; row < rows; row += kLanes) {
    const int count = rows - row < kLanes ? static_cast<int>(rows - row) : kLanes;
    const F32x16 nothing = set1(-__builtin_inff());
    const F32x16 old_max = load_tail(total.max + row, count);
    const F32x16 new_max = load_tail(partial.max + row, count);
    const F32x16 largest = max(old_max, new_max);
    const F32x16 base = select(less(nothing, largest), largest, zero_f32());
    const F32x16 a = exp(sub(old_max, base)), b = exp(sub(new_max, base));
    store(before + row, a);
    store(added + row, b);
    const F32x16 sum = mul(load_tail(total.sum + row, count), a);
    store_tail(total.sum + row, fma(load_tail(partial.sum + row, count), b, sum), count);
    store_tail(total.max + row, largest, count);
  }
  for (int64_t row = 0; row < rows; ++row) {
    const F32x16 a = set1(before[row]), b = set1(added[row]);
    for (int64_t d = row * head_dim; d < (row + 1) * head_dim; d += kLanes)
      store(total.out + d, fma(load(partial.out + d), b, mul(load(total.out + d), a)));
  }
}

void finish(int64_t rows, int64_t head_dim, const PartialAttention& total, float* out,
            const int64_t* offsets) {
  for (int64_t row = 0; row < rows; ++row) {
    const F32x16 factor = set1(1.0f / total.sum[row]);
    for (int64_t d = 0; d < head_dim; d += kLanes)
      store(out + offsets[row] + d, mul(load(total.out + row * head_dim + d), factor));
  }
}

}  // namespace trimtab::TRIMTAB_ISA
