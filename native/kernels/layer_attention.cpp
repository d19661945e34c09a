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
// Rows and vectors (16 keys, or 16 columns of values) of the widest micro-kernel, and how many
// vectors one of fewer rows takes: as many sums as fit the registers beside what is multiplied.
#if defined(TRIMTAB_KERNELS_AVX512)
constexpr int kMostRows = 8;
constexpr int vectors(int rows) { return rows == 8 ? 1 : rows == 4 ? 2 : 4; }
#else
constexpr int kMostRows = 4;
constexpr int vectors(int rows) { return 4 / rows; }
#endif

// A unit is the least that holds the same 16 lanes (tokens of K, columns of V) for kCount
// consecutive d of K or tokens of V; at() widens one of them. With kAgain the bytes are loaded each
// time: kept for C vectors at once, they would take registers from the sums.
template <KVFormat format>
struct Unit;

template <>
struct Unit<KVFormat::f32> {
  static constexpr int kCount = 1, kBytes = 64;
  template <bool kAgain>
  TRIMTAB_INLINE_MEMBER static F32x16 at(const uint8_t* p, int) {
    return load(reinterpret_cast<const float*>(p));
  }
};

template <>
struct Unit<KVFormat::bf16> {
  static constexpr int kCount = 2, kBytes = 64;
  template <bool kAgain>
  TRIMTAB_INLINE_MEMBER static F32x16 at(const uint8_t* p, int i) {
    if (kAgain && i != 0) __asm__("" : "+r"(p));
    const I32x16 pairs = load(reinterpret_cast<const int32_t*>(p));
    if (i == 0) return as_f32(shift_left<16>(pairs));
    return as_f32(bit_and(pairs, set1(static_cast<int32_t>(0xffff0000u))));
  }
};

template <>
struct Unit<KVFormat::int8> {
  static constexpr int kCount = 1, kBytes = 16;
  template <bool kAgain>
  TRIMTAB_INLINE_MEMBER static F32x16 at(const uint8_t* p, int) {
    return to_f32(load_s8(reinterpret_cast<const int8_t*>(p)));
  }
};

// The blocks of one key tile that hold keys anybody wants.
struct KeyTile {
  const uint8_t* blocks[kTileBlocks];
  const uint8_t* ahead[kTileBlocks];  // of the next tile, to be fetched meanwhile: blocks lie apart
  int first, last;                    // of them
  int64_t position;                   // of the tile's first key
};

struct State {
  const AttentionTile& tile;
  PartialAttention partial;
  float scores[kTileRows * kTileKeys];  // then weights
  float largest[kTileRows];             // the row's maximum, or 0 while it is -inf
  float decay[kTileRows];               // what the earlier tiles are multiplied by
};

// function(r, c) for every vector of R x C sums.
template <int R, int C, class Function>
TRIMTAB_INLINE void for_all(const Function& function) {
  unroll<R>([&](auto r) TRIMTAB_INLINE_LAMBDA {
    unroll<C>([&](auto c) TRIMTAB_INLINE_LAMBDA { function(r, c); });
  });
}

// sums[r][c] += vector(c) * scalar(r)
template <int R, int C, class Vector, class Scalar>
TRIMTAB_INLINE void accumulate(F32x16 (&sums)[R][C], const Vector& vector, const Scalar& scalar) {
  F32x16 factors[R];
  unroll<R>([&](auto r) TRIMTAB_INLINE_LAMBDA { factors[r] = set1(scalar(r)); });
  unroll<C>([&](auto c) TRIMTAB_INLINE_LAMBDA {
    const F32x16 x = vector(c);
    unroll<R>([&](auto r) TRIMTAB_INLINE_LAMBDA { sums[r][c] = fma(x, factors[r], sums[r][c]); });
  });
}

// Scores of rows [row, row + R) with blocks [block, block + C).
template <KVFormat format, int R, int C>
void score_block(State& state, const KeyTile& keys, int64_t row, int block) {
  using Keys = Unit<format>;
  const int64_t dim = state.tile.tile.head_dim;
  const float* query = state.tile.query + row * dim;
  const bool fetch = row == 0;
  F32x16 sums[R][C];
  for_all<R, C>([&](int r, int c) TRIMTAB_INLINE_LAMBDA { sums[r][c] = zero_f32(); });
  for (int64_t d = 0, at = 0; d < dim; d += Keys::kCount, at += Keys::kBytes) {
    unroll<Keys::kCount>([&](auto i) TRIMTAB_INLINE_LAMBDA {
      accumulate<R, C>(
          sums,
          [&](int c) TRIMTAB_INLINE_LAMBDA {
            if (i == 0 && fetch && at % 64 == 0) prefetch_far(keys.ahead[block + c] + at);
            return Keys::template at<(C > 1)>(keys.blocks[block + c] + at, i);
          },
          [&](int r) TRIMTAB_INLINE_LAMBDA { return query[r * dim + d + i]; });
    });
  }
  unroll<C>([&](auto c) TRIMTAB_INLINE_LAMBDA {
    unroll<R>([&](auto r) TRIMTAB_INLINE_LAMBDA {
      F32x16 score = sums[r][c];
      if (format == KVFormat::int8)
        score = mul(score, load(state.tile.tile.key_scales(keys.blocks[block + c])));
      store(state.scores + (row + r) * kTileKeys + (block + c) * kBlockTokens, score);
    });
  });
}

template <KVFormat format, int R>
void score_rows(State& state, const KeyTile& keys, int64_t row) {
  constexpr int C = vectors(R);
  int block = keys.first;
  for (; block + C <= keys.last; block += C) score_block<format, R, C>(state, keys, row, block);
  for (; block < keys.last; ++block) score_block<format, R, 1>(state, keys, row, block);
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
void value_block(State& state, const KeyTile& keys, int64_t row, int64_t column) {
  using Values = Unit<format>;
  const KVTile& layout = state.tile.tile;
  const int64_t dim = layout.head_dim;
  const bool fetch = row == 0;
  float* out = state.partial.out + row * dim + column;
  F32x16 sums[R][C];
  for_all<R, C>([&](int r, int c) TRIMTAB_INLINE_LAMBDA {
    sums[r][c] = mul(load(out + r * dim + c * kLanes), set1(state.decay[row + r]));
  });
  for (int block = keys.first; block < keys.last; ++block) {
    const int64_t offset = column / kLanes * Values::kBytes;
    const uint8_t* values = layout.values(keys.blocks[block]) + offset;
    const uint8_t* ahead = layout.values(keys.ahead[block]) + offset;
    const float* weights = state.scores + row * kTileKeys + block * kBlockTokens;
    for (int t = 0; t < kBlockTokens; t += Values::kCount) {
      unroll<Values::kCount>([&](auto i) TRIMTAB_INLINE_LAMBDA {
        accumulate<R, C>(
            sums,
            [&](int c) TRIMTAB_INLINE_LAMBDA {
              const int64_t at = c * Values::kBytes;
              if (i == 0 && fetch && (offset + at) % 64 == 0) prefetch_far(ahead + at);
              return Values::template at<(C > 1)>(values + at, i);
            },
            [&](int r) TRIMTAB_INLINE_LAMBDA { return weights[r * kTileKeys + t + i]; });
      });
      values += dim / kLanes * Values::kBytes;
      ahead += dim / kLanes * Values::kBytes;
    }
  }
  for_all<R, C>([&](int r, int c)
                    TRIMTAB_INLINE_LAMBDA { store(out + r * dim + c * kLanes, sums[r][c]); });
}

template <KVFormat format, int R>
void value_rows(State& state, const KeyTile& keys, int64_t row) {
  constexpr int C = vectors(R);
  const int64_t dim = state.tile.tile.head_dim;
  int64_t column = 0;
  for (; column + C * kLanes <= dim; column += C * kLanes)
    value_block<format, R, C>(state, keys, row, column);
  for (; column < dim; column += kLanes) value_block<format, R, 1>(state, keys, row, column);
}

// function(Index<R>(), row) for the micro-kernels that together are all rows.
template <class Function>
TRIMTAB_INLINE void for_rows(int64_t rows, const Function& function) {
  int64_t row = 0;
  for (; row + kMostRows <= rows; row += kMostRows) function(Index<kMostRows>(), row);
  if (kMostRows > 4 && row + 4 <= rows) {
    function(Index<4>(), row);
    row += 4;
  }
  for (; row + 2 <= rows; row += 2) function(Index<2>(), row);
  if (row < rows) function(Index<1>(), row);
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
    for (int block = keys.first; block < keys.last; ++block) {
      const int64_t index = base / kBlockTokens + block, next = index + kTileBlocks;
      keys.blocks[block] = tile.pool + tile.block_ids[index] * tile.block_stride;
      keys.ahead[block] = next * kBlockTokens < last_key
                              ? tile.pool + tile.block_ids[next] * tile.block_stride
                              : keys.blocks[block];
    }
    for_rows(tile.rows, [&](auto r, int64_t row) { score_rows<format, r>(state, keys, row); });
    for (int64_t row = 0; row < tile.rows; ++row) mask_row(state, keys, row);
    find_decay(state);
    for (int64_t row = 0; row < tile.rows; ++row) weigh_row<format>(state, keys, row);
    for_rows(tile.rows, [&](auto r, int64_t row) { value_rows<format, r>(state, keys, row); });
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
