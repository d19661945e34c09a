// A packed model as a file: its arena as it lies in memory, and its vectors as one string of bytes.
// Headers, checksums and names are the business of whoever writes the file.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "core/model.h"

namespace trimtab {

// Raise it whenever the bytes of an arena or of vectors change for the same weights and shape:
// layouts, rounding, order, alignment. Files of other revisions are not read.
constexpr int32_t kPackedRevision = 4;

// Norms, scales, biases and orders of columns: of each, in a fixed order, its count (u64), then its
// elements.
std::string save_vectors(const Model& model);

// A model whose arena is the file's bytes [arena_offset, vectors_offset), mapped; its vectors are
// copied from [vectors_offset, file_bytes). Throws std::invalid_argument if the file does not hold
// a complete model of this shape, and std::runtime_error if the system cannot map or read it.
Model map_model(const ModelShape& shape, int descriptor, int64_t file_bytes, int64_t arena_offset,
                int64_t vectors_offset);

}  // namespace trimtab
