// Memory for kernels: 64-byte aligned, in huge pages where the system gives them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace trimtab {

// A private mapping, zero-filled, not yet touched: pages cost memory when they are first written.
class Region {
 public:
  Region() = default;
  // `what` names the memory in the message of the std::runtime_error thrown if the system refuses.
  Region(size_t bytes, const std::string& what);
  ~Region();
  Region(Region&& other) noexcept;
  Region& operator=(Region&& other) noexcept;

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// Scratch that grows and is reused; growing loses what was in it.
class Scratch {
 public:
  template <typename T>
  T* get(int64_t count) {
    return reinterpret_cast<T*>(reserve(static_cast<size_t>(count) * sizeof(T)));
  }

 private:
  uint8_t* reserve(size_t bytes);

  Region region_;
};

}  // namespace trimtab
