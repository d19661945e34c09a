// From matrices as a checkpoint stores them to matrices as the kernels read them, and back.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/model.h"
#include "core/thread_pool.h"
#include "kernels/kernels.h"

namespace trimtab {

enum class StoredType { f32, f16, bf16 };

// A row-major matrix [rows][cols] somewhere in memory, only read while it is being loaded.
struct StoredMatrix {
  const void* data;
  StoredType type;
  int64_t rows, cols;
};

// A matrix of integers or float8 that is kept as it is: GroupedMatrix or Fp8Matrix of
// trimtab.numerics.stored, in groups that the kernels take. Row-major arrays [rows][groups], in the
// form of the matrix's MatrixFormat; those that it does not have are null.
struct StoredIntegers {
  const int8_t* values;           // [rows][cols], centred; fp8: bit patterns
  const uint8_t* scales;          // f16, bf16, f32 or, with supers, s8; fp8, whole rows: f32
  const uint8_t* offsets;         // f16 zeros or offsets; with supers, s8
  const uint16_t* super_scales;   // f16 [rows][cols / kSuperColumns]
  const uint16_t* super_offsets;  // likewise
  int64_t rows, cols;
};

// Which stored row becomes which row of a packed matrix.
enum class RowOrder { concatenated, interleaved_panels };

// Called between pieces of a long conversion, when what has been read of the source is done with.
using BetweenPieces = std::function<void()>;

// `biases` is empty or holds one array [rows] a part, `columns` is empty or holds the order of
// columns. Throws std::invalid_argument if the parts do not fit together or into the matrix.
struct PackedExtras {
  std::vector<const float*> biases;
  std::vector<int32_t> columns;
};

// Packs the parts into a matrix of a placed model, panel by panel, on all threads; scratch is a few
// rows of f32 a thread.
void pack_matrix(ThreadPool& pool, const GemmKernels& kernels, Model& model, Matrix& matrix,
                 const std::vector<StoredMatrix>& parts, const PackedExtras& extras, RowOrder order,
                 const BetweenPieces& between);
void pack_integers(ThreadPool& pool, Model& model, Matrix& matrix,
                   const std::vector<StoredIntegers>& parts, const PackedExtras& extras,
                   RowOrder order);

// The rows of `source`, on this thread, as the whole of a matrix: `data` has packed_bytes(w), and
// `scales`, of a matrix whose rows are scaled, padded_rows.
void pack_integers(const PackedMatrix& w, uint8_t* data, float* scales,
                   const StoredIntegers& source);

// The embedding table of a placed model, converted row by row on all threads.
void load_embedding(ThreadPool& pool, Model& model, const StoredMatrix& source,
                    const BetweenPieces& between);

// out [cols] = a row of a packed matrix of integers, in float32 as MatrixFormat says.
void dequantize_row(const PackedMatrix& matrix, int64_t row, float* out);

}  // namespace trimtab
