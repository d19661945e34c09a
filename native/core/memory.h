// Memory for kernels: 64-byte aligned, in huge pages where the system gives them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace trimtab {

// A private mapping, zero-filled, not yet touched: pages cost memory when they are first written.
// Or a file (map_file).
class Region {
 public:
  Region() = default;
  // `what` names the memory in the message of the std::runtime_error thrown if the system refuses.
  Region(size_t bytes, const std::string& what);
  ~Region();
  Region(Region&& other) noexcept;
  Region& operator=(Region&& other) noexcept;

  // The first `bytes` of a file, mapped read-only: its pages are those of the system's cache,
  // shared with every process that maps it. Writing to data() of such a region ends the process.
  // Throws std::runtime_error if the system refuses.
  static Region map_file(int descriptor, size_t bytes);
  // Brings a mapped range into memory now, not fault by fault. Throws std::runtime_error if the
  // file cannot be read there; a system that cannot do this leaves it to the faults.
  void populate(size_t offset, size_t bytes) const;
  // Asks the system to read a mapped range ahead; nothing becomes resident.
  void read_ahead(size_t offset, size_t bytes) const;

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
