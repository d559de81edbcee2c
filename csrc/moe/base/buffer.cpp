#include "moe/base/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace moe {

Buffer::Buffer(size_t bytes) {
  if (bytes == 0) return;
  const bool large = bytes >= kHugePageBytes;
  const size_t alignment = large ? kHugePageBytes : kCacheLineBytes;
  if (bytes > SIZE_MAX - alignment) throw std::bad_alloc();
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, rounded);
  if (memory == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (large)
    madvise(memory, rounded, MADV_HUGEPAGE);  // advice: its failure costs speed, nothing else
#endif
  data_ = static_cast<std::byte*>(memory);
  bytes_ = rounded;
}

Buffer::~Buffer() { std::free(data_); }

std::byte* scratch(Scratch slot, size_t bytes) {
  thread_local Buffer buffers[static_cast<size_t>(Scratch::kCount)];
  Buffer& buffer = buffers[static_cast<size_t>(slot)];
  buffer.reserve(bytes);
  return buffer.data();
}

}  // namespace moe
