// Arrays across the border: checked views of what Python hands in, owned arrays handed out.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

template <typename T, int dims>
using ConstArray =
    nanobind::ndarray<const T, nanobind::ndim<dims>, nanobind::c_contig, nanobind::device::cpu>;

// The attribute `name` of a Python object as an array of exactly that dtype and rank; throws
// std::invalid_argument that names it. The array keeps its memory alive.
template <typename T, int dims>
ConstArray<T, dims> array_attribute(nanobind::handle object, const char* name) {
  ConstArray<T, dims> array;
  if (!nanobind::try_cast<ConstArray<T, dims>>(object.attr(name), array, false))
    throw std::invalid_argument(std::string(name) +
                                ": must be a contiguous array of the documented dtype and rank");
  return array;
}

// Memory that becomes a numpy array; not initialized.
template <typename T>
class OwnedArray {
 public:
  explicit OwnedArray(int64_t count) : data_(new T[static_cast<size_t>(count)]) {}

  T* data() { return data_.get(); }

  nanobind::object release(std::initializer_list<size_t> shape) {
    T* data = data_.release();
    nanobind::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nanobind::cast(nanobind::ndarray<nanobind::numpy, T>(data, shape, owner));
  }

 private:
  std::unique_ptr<T[]> data_;
};
