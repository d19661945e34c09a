// Matrices of integers as Python hands them in.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/packing.h"

using AnyArray = nanobind::ndarray<nanobind::ro, nanobind::c_contig, nanobind::device::cpu>;

inline void check_shape(const std::string& name, int64_t found_rows, int64_t found_cols,
                        int64_t rows, int64_t cols) {
  if (found_rows != rows || found_cols != cols)
    throw std::invalid_argument(name + " has shape [" + std::to_string(found_rows) + ", " +
                                std::to_string(found_cols) + "], not [" + std::to_string(rows) +
                                ", " + std::to_string(cols) + "]");
}

// An array [rows][width] of bytes a row, contiguous, of elements of `item` bytes; null for None.
inline const void* row_array(const std::string& name, nanobind::handle object, int64_t rows,
                             int64_t width, int64_t item) {
  if (object.is_none()) return nullptr;
  const AnyArray array = nanobind::cast<AnyArray>(object);
  if (array.ndim() != 2 || static_cast<int64_t>(array.itemsize()) != item)
    throw std::invalid_argument(name + ": scales and offsets are matrices of the format's type");
  check_shape(name + ": scales or offsets", static_cast<int64_t>(array.shape(0)),
              static_cast<int64_t>(array.shape(1)), rows, width);
  return array.data();
}

// (values, scales, offsets, super_scales, super_offsets), None for what the format does not have.
// The arrays outlive the call: the tuple holds them.
inline trimtab::StoredIntegers stored_integers(const std::string& name, const nanobind::tuple& part,
                                               const trimtab::PackedMatrix& w) {
  if (part.size() != 5) throw std::invalid_argument(name + ": integers come in five arrays");
  const AnyArray values = nanobind::cast<AnyArray>(part[0]);
  if (values.ndim() != 2 || values.itemsize() != 1)
    throw std::invalid_argument(name + ": values must be a matrix of bytes");
  const int64_t rows = static_cast<int64_t>(values.shape(0));
  const int64_t cols = static_cast<int64_t>(values.shape(1));
  const int64_t groups = w.groups(), supers = w.super_bytes() / 128;
  const bool wide = w.scaled_rows() || w.format == trimtab::WeightFormat::fp8;
  const int64_t scale_item = wide ? 4 : w.scale_bytes() / (2 * trimtab::kPanel);
  const int64_t offset_item = w.has_supers() ? 1 : 2;
  return {static_cast<const int8_t*>(values.data()),
          static_cast<const uint8_t*>(row_array(name, part[1], rows, groups, scale_item)),
          static_cast<const uint8_t*>(row_array(name, part[2], rows, groups, offset_item)),
          static_cast<const uint16_t*>(row_array(name, part[3], rows, supers, 2)),
          static_cast<const uint16_t*>(row_array(name, part[4], rows, supers, 2)),
          rows,
          cols};
}
