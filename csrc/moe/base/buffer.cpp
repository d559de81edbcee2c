#include "moe/base/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace moe {

namespace {

constexpr size_t kPageBytes = 4096;
// A huge page more may waste this part of a buffer.
constexpr size_t kWasteShare = 32;

constexpr size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

#if defined(__SANITIZE_ADDRESS__)
// The sanitizer watches the ends of what malloc gives.
std::byte* map_pages(size_t bytes) {
  void* memory = std::aligned_alloc(kHugePageBytes, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return static_cast<std::byte*>(memory);
}
void unmap_pages(std::byte* memory, size_t) { std::free(memory); }
#else
/// Pages of their own that begin with a huge page. Malloc would take them from its heap once larger
/// blocks have been freed, and what it leaves in front of the alignment stays resident.
std::byte* map_pages(size_t bytes) {
  const size_t room = bytes + kHugePageBytes;
  void* memory = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  auto* begin = static_cast<std::byte*>(memory);
  const auto address = reinterpret_cast<uintptr_t>(memory);
  const size_t before = round_up(address, kHugePageBytes) - address;
  if (before != 0) munmap(begin, before);
  if (before != kHugePageBytes) munmap(begin + before + bytes, kHugePageBytes - before);
  return begin + before;
}
void unmap_pages(std::byte* memory, size_t bytes) { munmap(memory, bytes); }
#endif

}  // namespace

Buffer::Buffer(size_t bytes) {
  if (bytes == 0) return;
  if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
  if (bytes <= kHugePageBytes - kCacheLineBytes) {
    bytes_ = round_up(bytes, kCacheLineBytes);
    data_ = static_cast<std::byte*>(std::aligned_alloc(kCacheLineBytes, bytes_));
    if (data_ == nullptr) throw std::bad_alloc();
    return;
  }
  size_t huge = bytes / kHugePageBytes * kHugePageBytes;
  // The end gets a huge page of its own where little of it is wasted: what is touched of one is
  // resident as a whole.
  if (huge + kHugePageBytes - bytes <= bytes / kWasteShare) huge += kHugePageBytes;
  bytes_ = std::max(huge, round_up(bytes, kPageBytes));
  data_ = map_pages(bytes_);
#ifdef MADV_HUGEPAGE
  madvise(data_, huge, MADV_HUGEPAGE);  // advice: its failure costs speed, nothing else
#endif
}

Buffer::~Buffer() {
  if (bytes_ < kHugePageBytes) {
    std::free(data_);
  } else {
    unmap_pages(data_, bytes_);
  }
}

std::byte* scratch(Scratch slot, size_t bytes) {
  thread_local Buffer buffers[static_cast<size_t>(Scratch::kCount)];
  Buffer& buffer = buffers[static_cast<size_t>(slot)];
  buffer.reserve(bytes);
  return buffer.data();
}

}  // namespace moe
