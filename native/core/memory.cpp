#include "core/memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace trimtab {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ of Linux 5.14; older headers lack it

// [offset, offset + bytes), widened to whole pages.
struct Pages {
  uint8_t* first;
  size_t bytes;

  Pages(uint8_t* base, size_t offset, size_t count) {
    const size_t begin = offset / kPage * kPage;
    first = base + begin;
    bytes = (offset + count + kPage - 1) / kPage * kPage - begin;
  }
};

// For the address sanitizer, which does not see into mappings: of `size` bytes the first `bytes`
// may be touched.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kFence = 64;  // bytes at least behind each region

void fence(uint8_t* data, size_t bytes, size_t size) {
  __asan_unpoison_memory_region(data, bytes);
  __asan_poison_memory_region(data + bytes, size - bytes);
}
#else
constexpr size_t kFence = 0;

void fence(uint8_t*, size_t, size_t) {}
#endif

}  // namespace

Region::Region(size_t bytes, const std::string& what) {
  if (bytes == 0) return;
  const size_t unit = bytes >= kHugePage ? kHugePage : kPage;
  const size_t size = (bytes + kFence + unit - 1) / unit * unit;
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED)
    throw std::runtime_error("the system gives no " + std::to_string(bytes >> 20) + " MiB for " +
                             what);
  if (size >= kHugePage) madvise(data, size, MADV_HUGEPAGE);  // a hint: refusal is no error
  data_ = static_cast<uint8_t*>(data);
  size_ = size;
  fence(data_, bytes, size);
}

Region Region::map_file(int descriptor, size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, descriptor, 0);
  if (data == MAP_FAILED)
    throw std::runtime_error(std::string("the file cannot be mapped: ") + std::strerror(errno));
  madvise(data, bytes, MADV_HUGEPAGE);  // a hint: larger pages where the file system has them
  Region region;
  region.data_ = static_cast<uint8_t*>(data);
  region.size_ = bytes;
  return region;
}

void Region::populate(size_t offset, size_t bytes) const {
  const Pages pages(data_, offset, bytes);
  if (madvise(pages.first, pages.bytes, kPopulateRead) == 0 || errno == EINVAL || errno == EAGAIN)
    return;
  throw std::runtime_error(std::string("the file cannot be read: ") + std::strerror(errno));
}

void Region::read_ahead(size_t offset, size_t bytes) const {
  const Pages pages(data_, offset, bytes);
  madvise(pages.first, pages.bytes, MADV_WILLNEED);  // a hint: refusal is no error
}

Region::~Region() {
  if (data_ == nullptr) return;
  fence(data_, size_, size_);
  munmap(data_, size_);
}

Region::Region(Region&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Region& Region::operator=(Region&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

uint8_t* Scratch::reserve(size_t bytes) {
  if (bytes + kFence > region_.size()) {
    region_ = Region();  // release the old one before asking for more
    region_ = Region(bytes + bytes / 4, "scratch");
  }
  fence(region_.data(), bytes, region_.size());
  return region_.data();
}

}  // namespace trimtab
