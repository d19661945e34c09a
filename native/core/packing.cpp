#include "core/packing.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/floats.h"

namespace trimtab {
namespace {

constexpr int64_t kPieceBytes = int64_t{32} << 20;  // of the source, between two calls of `between`

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

int64_t embedding_element(EmbeddingFormat format) { return format == EmbeddingFormat::f32 ? 4 : 2; }

// dst [cols] = the row as float32, exactly
void widen(const StoredMatrix& source, int64_t row, float* dst) {
  const int64_t first = row * source.cols;
  if (source.type == StoredType::f32) {
    std::memcpy(dst, static_cast<const float*>(source.data) + first,
                static_cast<size_t>(source.cols) * 4);
    return;
  }
  const uint16_t* bits = static_cast<const uint16_t*>(source.data) + first;
  for (int64_t i = 0; i < source.cols; ++i)
    dst[i] = source.type == StoredType::f16 ? widen_half(bits[i]) : widen_bf16(bits[i]);
}

// Rows of a piece, in units of `granule` rows.
int64_t rows_of_a_piece(const StoredMatrix& source, int64_t granule) {
  const int64_t row_bytes = source.cols * (source.type == StoredType::f32 ? 4 : 2);
  return std::max<int64_t>(1, kPieceBytes / (granule * row_bytes));
}

// Part and row of every packed row; part -1 is a row of zeros.
struct RowPlace {
  int32_t part;
  int64_t row;
};

template <typename Part>
std::vector<RowPlace> place_rows(const std::vector<Part>& parts, RowOrder order) {
  std::vector<RowPlace> places;
  if (order == RowOrder::concatenated) {
    for (size_t part = 0; part < parts.size(); ++part)
      for (int64_t row = 0; row < parts[part].rows; ++row)
        places.push_back({static_cast<int32_t>(part), row});
    return places;
  }
  const int64_t rows = parts[0].rows;
  for (int64_t panel = 0; panel < rows; panel += kPanel)
    for (size_t part = 0; part < parts.size(); ++part)
      for (int64_t row = panel; row < panel + kPanel; ++row)
        places.push_back({row < rows ? static_cast<int32_t>(part) : -1, row});
  return places;
}

// Checks that the parts fit, and sets bias and columns of the matrix.
template <typename Part>
std::vector<RowPlace> begin_packing(Matrix& matrix, const std::vector<Part>& parts,
                                    const PackedExtras& extras, RowOrder order) {
  if (parts.empty()) refuse("a matrix needs at least one part");
  for (const Part& part : parts) {
    if (part.rows < 1 || part.cols != parts[0].cols)
      refuse("parts of one matrix differ in their number of columns");
    if (order == RowOrder::interleaved_panels && part.rows != parts[0].rows)
      refuse("gate and up differ in their number of rows");
  }
  const std::vector<const float*>& biases = extras.biases;
  if (!biases.empty() && biases.size() != parts.size()) refuse("one bias for each part, or none");
  std::vector<RowPlace> places = place_rows(parts, order);
  if (static_cast<int64_t>(places.size()) != matrix.packed.rows ||
      parts[0].cols != matrix.packed.cols)
    refuse("the parts do not fill their matrix");
  const int64_t cols = parts[0].cols;
  if (!extras.columns.empty()) {
    std::vector<bool> seen(static_cast<size_t>(cols));
    if (static_cast<int64_t>(extras.columns.size()) != cols) refuse("columns: one for each column");
    for (const int32_t column : extras.columns) {
      if (column < 0 || column >= cols || seen[static_cast<size_t>(column)])
        refuse("columns: must name every column once");
      seen[static_cast<size_t>(column)] = true;
    }
  }
  matrix.columns = extras.columns;
  matrix.bias.clear();
  if (!biases.empty()) {
    matrix.bias.assign(static_cast<size_t>(matrix.packed.padded_rows), 0.0f);
    for (size_t n = 0; n < places.size(); ++n)
      if (places[n].part >= 0) matrix.bias[n] = biases[places[n].part][places[n].row];
  }
  return places;
}

}  // namespace

void pack_matrix(ThreadPool& pool, const GemmKernels& kernels, Model& model, Matrix& matrix,
                 const std::vector<StoredMatrix>& parts, const PackedExtras& extras, RowOrder order,
                 const BetweenPieces& between) {
  const PackedMatrix& w = matrix.packed;
  if (w.format > WeightFormat::int4 ||
      (w.group_size != 0 &&
       (w.scale_format != ScaleFormat::f16 || w.offset_format != OffsetFormat::none)))
    refuse("floats are not rounded to this format");
  const std::vector<RowPlace> places = begin_packing(matrix, parts, extras, order);
  const int64_t cols = parts[0].cols;
  uint8_t* data = model.arena() + (matrix.packed.data - model.arena());
  constexpr int64_t kPanels = 2;  // at a time: what every format accepts
  const int64_t items = (matrix.packed.padded_rows / kPanel + kPanels - 1) / kPanels;
  const int64_t piece = rows_of_a_piece(parts[0], kPanels * kPanel);
  std::vector<std::vector<float>> rows(
      pool.num_threads(), std::vector<float>(static_cast<size_t>(kPanels * kPanel * cols)));
  const auto pack_item = [&](float* source, int64_t item) {
    const int64_t panel0 = item * kPanels;
    const int64_t panel1 = std::min(matrix.packed.padded_rows / kPanel, panel0 + kPanels);
    for (int64_t n = panel0 * kPanel; n < panel1 * kPanel; ++n) {
      float* row = source + (n - panel0 * kPanel) * cols;
      const bool stored = n < static_cast<int64_t>(places.size()) && places[n].part >= 0;
      if (stored)
        widen(parts[places[n].part], places[n].row, row);
      else
        std::memset(row, 0, static_cast<size_t>(cols) * 4);
    }
    kernels.pack(matrix.packed, data, matrix.scales.data(), source, panel0, panel1);
  };
  for (int64_t first = 0; first < items; first += piece) {
    pool.for_each(std::min(piece, items - first), 1, [&](int64_t item, int64_t, int thread) {
      pack_item(rows[thread].data(), first + item);
    });
    between();
  }
  matrix.loaded = true;
}

namespace {

// Where the parts of an integer of 5 or 6 bits lie among the bytes of a quad (kernels.h).
struct SplitPlace {
  int64_t byte;  // of the high bits
  int shift;     // of them
  int bits;      // of the integer
};

SplitPlace split_place(WeightFormat format, int64_t number) {
  if (format == WeightFormat::int5) return {64 + number % 16, static_cast<int>(number / 16), 5};
  return {64 + number % 32, static_cast<int>(number / 32 * 2), 6};
}

int64_t quad_bytes(WeightFormat format) { return 16 * integer_bits(format); }

// Of a quad of a pair of panels: sets number `number` of its 128 integers, which was zero bits.
void write_integer(WeightFormat format, uint8_t* quad, int64_t number, int value) {
  if (format == WeightFormat::int8) {
    quad[number] = static_cast<uint8_t>(value + 128);
    return;
  }
  const int half = 1 << (integer_bits(format) - 1), stored = value + half;
  quad[number % 64] |= static_cast<uint8_t>((stored & 15) << (number / 64 * 4));
  if (format == WeightFormat::int4) return;
  const SplitPlace place = split_place(format, number);
  quad[place.byte] |= static_cast<uint8_t>((stored >> 4) << place.shift);
}

int read_integer(WeightFormat format, const uint8_t* quad, int64_t number) {
  if (format == WeightFormat::int8) return quad[number] - 128;
  int stored = quad[number % 64] >> (number / 64 * 4) & 15;
  if (format != WeightFormat::int4) {
    const SplitPlace place = split_place(format, number);
    stored |= (quad[place.byte] >> place.shift & ((1 << (place.bits - 4)) - 1)) << 4;
  }
  return stored - (1 << (integer_bits(format) - 1));
}

// Writes one panel of a matrix of integers or float8; rows that are not written are zeros.
class IntegerPanel {
 public:
  IntegerPanel(const PackedMatrix& w, uint8_t* data, int64_t panel) : w_(w) {
    paired_ = w.group_size != 0 && w.format != WeightFormat::fp8;
    half_ = paired_ ? panel % 2 : 0;
    bytes_ = packed_bytes(w) / (w.padded_rows / kPanel) * (paired_ ? 2 : 1);
    start_ = data + (paired_ ? panel / 2 : panel) * bytes_;
  }

  void clear() const {
    if (half_ == 0) std::memset(start_, 0, static_cast<size_t>(bytes_));
  }

  void write_values(int64_t n, const int8_t* values) const {
    if (w_.group_size == 0) {
      for (int64_t k = 0; k < w_.padded_cols; ++k)
        start_[k / 4 * 64 + n * 4 + k % 4] =
            static_cast<uint8_t>((k < w_.cols ? values[k] : 0) + 128);
      return;
    }
    for (int64_t k = 0; k < w_.padded_cols; ++k) {
      const int value = k < w_.cols ? values[k] : 0;
      uint8_t* block = block_at(k / w_.group_size);
      const int64_t at = k % w_.group_size;
      if (w_.format == WeightFormat::fp8)
        block[64 + at * kPanel + n] = static_cast<uint8_t>(value);
      else
        write_integer(w_.format, block + w_.header_bytes() + at / 4 * quad_bytes(w_.format),
                      half_ * 64 + n * 4 + at % 4, value);
    }
  }

  // `bytes` of each group from a row [groups], to `place` of its header.
  void write_header(int64_t n, const uint8_t* row, int64_t bytes, int64_t place) const {
    for (int64_t g = 0; g < w_.groups(); ++g)
      std::memcpy(block_at(g) + place + (half_ * kPanel + n) * bytes, row + g * bytes,
                  static_cast<size_t>(bytes));
  }

  void write_supers(int64_t n, const uint16_t* row, int64_t place) const {
    for (int64_t i = 0; i < w_.super_bytes() / 128; ++i)
      std::memcpy(start_ + i * 128 + place + (half_ * kPanel + n) * 2, row + i, 2);
  }

 private:
  uint8_t* block_at(int64_t g) const { return start_ + w_.super_bytes() + g * w_.block_bytes(); }

  const PackedMatrix& w_;
  bool paired_;
  int64_t half_, bytes_;
  uint8_t* start_;
};

int64_t scale_width(const PackedMatrix& w) {
  return w.format == WeightFormat::fp8 ? 4 : w.scale_bytes() / (2 * kPanel);
}

void check_integers(const PackedMatrix& w, const StoredIntegers& part) {
  const bool offsets = w.offset_format != OffsetFormat::none;
  if (part.values == nullptr || part.scales == nullptr) refuse("integers need values and scales");
  if (offsets != (part.offsets != nullptr)) refuse("offsets: as the matrix's format says");
  if (w.has_supers() != (part.super_scales != nullptr) ||
      (w.has_supers() && offsets) != (part.super_offsets != nullptr))
    refuse("super-scales: as the matrix's format says");
  if (w.has_supers() && part.cols % kSuperColumns != 0)
    refuse("super-scales need a multiple of 256 columns");
}

void write_row(const PackedMatrix& w, const IntegerPanel& panel, int64_t n,
               const StoredIntegers& part, int64_t row) {
  panel.write_values(n, part.values + row * w.cols);
  if (w.group_size == 0) return;
  const int64_t groups = w.groups(), width = scale_width(w);
  panel.write_header(n, part.scales + row * groups * width, width, 0);
  const int64_t offset_width = w.has_supers() ? 1 : 2;
  if (part.offsets != nullptr)
    panel.write_header(n, part.offsets + row * groups * offset_width, offset_width,
                       w.scale_bytes());
  const int64_t supers = w.super_bytes() / 128;
  if (part.super_scales != nullptr) panel.write_supers(n, part.super_scales + row * supers, 0);
  if (part.super_offsets != nullptr) panel.write_supers(n, part.super_offsets + row * supers, 64);
}

}  // namespace

namespace {

// Panels [first, last) of a matrix; groups need even bounds. place_of(n) is the part and row of
// packed row n, or a part of null for zeros, whose scale is zero too.
template <typename PlaceOf>
void pack_panels(const PackedMatrix& w, uint8_t* data, float* scales, int64_t first, int64_t last,
                 const PlaceOf& place_of) {
  for (int64_t p = first; p < last; ++p) {
    const IntegerPanel panel(w, data, p);
    panel.clear();
    for (int64_t n = 0; n < kPanel; ++n) {
      const int64_t at = p * kPanel + n;
      const auto [part, row] = place_of(at);
      if (w.group_size == 0) scales[at] = 0.0f;
      if (part == nullptr) continue;
      write_row(w, panel, n, *part, row);
      if (w.group_size == 0) std::memcpy(scales + at, part->scales + row * 4, 4);
    }
  }
}

using PartRow = std::pair<const StoredIntegers*, int64_t>;

}  // namespace

void pack_integers(const PackedMatrix& w, uint8_t* data, float* scales,
                   const StoredIntegers& source) {
  check_integers(w, source);
  if (source.rows != w.rows || source.cols != w.cols) refuse("the integers have another shape");
  pack_panels(w, data, scales, 0, w.padded_rows / kPanel,
              [&](int64_t n) { return n < w.rows ? PartRow{&source, n} : PartRow{nullptr, 0}; });
}

void pack_integers(ThreadPool& pool, Model& model, Matrix& matrix,
                   const std::vector<StoredIntegers>& parts, const PackedExtras& extras,
                   RowOrder order) {
  const PackedMatrix& w = matrix.packed;
  if (integer_bits(w.format) == 0 && w.format != WeightFormat::fp8)
    refuse("the matrix holds neither integers nor float8");
  const std::vector<RowPlace> places = begin_packing(matrix, parts, extras, order);
  for (const StoredIntegers& part : parts) check_integers(w, part);
  uint8_t* data = model.arena() + (w.data - model.arena());
  const bool alone = w.group_size == 0 || w.format == WeightFormat::fp8;
  const int64_t together = alone ? 1 : 2;  // panels that share their bytes
  const auto place_of = [&](int64_t n) {
    const bool stored = n < static_cast<int64_t>(places.size()) && places[n].part >= 0;
    return stored ? PartRow{&parts[places[n].part], places[n].row} : PartRow{nullptr, 0};
  };
  pool.for_each(w.padded_rows / kPanel / together, 1, [&](int64_t item, int64_t, int) {
    pack_panels(w, data, matrix.scales.data(), item * together, (item + 1) * together, place_of);
  });
  matrix.loaded = true;
}

void load_embedding(ThreadPool& pool, Model& model, const StoredMatrix& source,
                    const BetweenPieces& between) {
  const EmbeddingFormat format = model.shape.table_format();
  const int64_t cols = source.cols;
  const int64_t element = embedding_element(format);
  if (!model.shape.has_table() ||
      source.rows * cols * element != static_cast<int64_t>(model.embedding.size()))
    refuse("the embedding table has another size");
  uint8_t* table = model.arena();
  std::vector<std::vector<float>> scratch(pool.num_threads(), std::vector<float>(cols));
  const auto convert = [&](float* row, int64_t n) {
    uint8_t* dst = table + n * cols * element;
    if (format == EmbeddingFormat::f32) {
      widen(source, n, reinterpret_cast<float*>(dst));
      return;
    }
    widen(source, n, row);
    for (int64_t i = 0; i < cols; ++i) reinterpret_cast<uint16_t*>(dst)[i] = round_bf16(row[i]);
  };
  const int64_t piece = rows_of_a_piece(source, 1);
  for (int64_t first = 0; first < source.rows; first += piece) {
    pool.for_each(std::min(piece, source.rows - first), 64,
                  [&](int64_t begin, int64_t end, int thread) {
                    for (int64_t n = begin; n < end; ++n)
                      convert(scratch[thread].data(), first + n);
                  });
    between();
  }
  model.embedding_loaded = true;
}

namespace {

uint16_t half_at(const uint8_t* p, int64_t index) {
  uint16_t bits;
  std::memcpy(&bits, p + index * 2, 2);
  return bits;
}

float scale_at(const PackedMatrix& w, const uint8_t* header, const uint8_t* supers, int64_t row) {
  if (w.scale_format == ScaleFormat::f16) return widen_half(half_at(header, row));
  if (w.scale_format == ScaleFormat::bf16) return widen_bf16(half_at(header, row));
  if (w.scale_format == ScaleFormat::f32) {
    float scale;
    std::memcpy(&scale, header + row * 4, 4);
    return scale;
  }
  return widen_half(half_at(supers, row)) * static_cast<float>(static_cast<int8_t>(header[row]));
}

float offset_at(const PackedMatrix& w, const uint8_t* header, const uint8_t* supers, int64_t row) {
  if (!w.has_supers()) return widen_half(half_at(header + w.scale_bytes(), row));
  const float step = widen_half(half_at(supers + 64, row));
  return -(step * static_cast<float>(static_cast<int8_t>(header[32 + row])));
}

}  // namespace

void dequantize_row(const PackedMatrix& w, int64_t row, float* out) {
  const int64_t n = row % kPanel;
  if (w.group_size == 0) {
    const uint8_t* panel = w.data + row / kPanel * w.padded_cols * kPanel + n * 4;
    for (int64_t k = 0; k < w.cols; ++k)
      out[k] = static_cast<float>(panel[k / 4 * 64 + k % 4] - 128) * w.scales[row];
    return;
  }
  const int64_t half = row / kPanel % 2, in_pair = row % (2 * kPanel);
  const uint8_t* pair = w.data + row / (2 * kPanel) * w.pair_bytes();
  for (int64_t g = 0; g < w.groups(); ++g) {
    const uint8_t* header = pair + w.super_bytes() + g * w.block_bytes();
    const uint8_t* supers = pair + g * w.group_size / kSuperColumns * 128;
    const uint8_t* weights = header + w.header_bytes();
    const float scale = scale_at(w, header, supers, in_pair);
    const bool shifted = w.offset_format == OffsetFormat::zero;
    const bool affine = w.offset_format == OffsetFormat::offset;
    const float offset = shifted || affine ? offset_at(w, header, supers, in_pair) : 0.0f;
    const float zero = shifted ? offset : affine ? -w.centre : 0.0f;
    const int64_t first = g * w.group_size, last = std::min(w.cols, first + w.group_size);
    for (int64_t k = first; k < last; ++k) {
      const int64_t at = k - first;
      const int q = read_integer(w.format, weights + at / 4 * quad_bytes(w.format),
                                 half * 64 + n * 4 + at % 4);
      const float product = (static_cast<float>(q) - zero) * scale;
      out[k] = affine ? product + offset : product;
    }
  }
}

}  // namespace trimtab
