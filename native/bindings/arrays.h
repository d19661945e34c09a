// Arrays across the border: checked views of what Python hands in, owned arrays handed out.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

template <typename T, int dims>
using ConstArray =
    nanobind::ndarray<const T, nanobind::ndim<dims>, nanobind::c_contig, nanobind::device::cpu>;

// The place of `name` among `names`, as an enumeration. Throws std::invalid_argument.
template <typename Enumeration>
Enumeration choice(const char* what, const std::string& name,
                   std::initializer_list<const char*> names) {
  int place = 0;
  for (const char* candidate : names) {
    if (name == candidate) return static_cast<Enumeration>(place);
    ++place;
  }
  throw std::invalid_argument(std::string("unknown ") + what + " '" + name + "'");
}

// An attribute that from call to call is often the very same array: then it is not looked into
// again. It is held until the next `read`, and so keeps its memory where it is.
template <typename T, int dims>
class HeldArray {
 public:
  // `name`: of the attribute, perhaps after a prefix and a dot that only messages show.
  explicit HeldArray(const char* name)
      : name_(name), attribute_(nanobind::steal(PyUnicode_InternFromString(after_dot(name)))) {}

  // object.name as an array of exactly that dtype and rank; throws std::invalid_argument that names
  // it.
  const ConstArray<T, dims>& read(nanobind::handle object) {
    nanobind::object value = nanobind::getattr(object, attribute_);
    if (value.is(held_)) return array_;
    ConstArray<T, dims> array;
    if (!nanobind::try_cast<ConstArray<T, dims>>(value, array, false))
      throw std::invalid_argument(std::string(name_) +
                                  ": must be a contiguous array of the documented dtype and rank");
    array_ = std::move(array);
    held_ = std::move(value);
    return array_;
  }

  const char* name() const { return name_; }
  const T* data() const { return array_.data(); }
  int64_t length() const { return static_cast<int64_t>(array_.shape(0)); }

 private:
  static const char* after_dot(const char* name) {
    const char* dot = std::strrchr(name, '.');
    return dot == nullptr ? name : dot + 1;
  }

  const char* name_;
  nanobind::object attribute_;
  nanobind::object held_;
  ConstArray<T, dims> array_;
};

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
