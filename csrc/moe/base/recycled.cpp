#include "moe/base/recycled.h"

#include <array>
#include <mutex>
#include <utility>

namespace moe {

namespace {

constexpr size_t kMostBuffers = 64;
// A buffer is taken for what fills this part of it and more.
constexpr size_t kFilled = 3, kOf = 4;

struct Kept {
  std::mutex mutex;
  std::array<Buffer, kMostBuffers> buffers;  // those that were given back first come first
  size_t count = 0, bytes = 0;

  Buffer remove(size_t i) {
    Buffer taken = std::move(buffers[i]);
    bytes -= taken.bytes();
    --count;
    for (; i < count; ++i) buffers[i] = std::move(buffers[i + 1]);
    return taken;
  }
};

/// Never destroyed: arrays outlive what is static at the end of a process.
Kept& kept() {
  static Kept* memory = new Kept;
  return *memory;
}

}  // namespace

Buffer take_recycled(size_t bytes) {
  Kept& memory = kept();
  {
    const std::lock_guard<std::mutex> lock(memory.mutex);
    // What was given back last is likeliest to be in the caches.
    for (size_t i = memory.count; i-- > 0;) {
      const size_t size = memory.buffers[i].bytes();
      if (size >= bytes && bytes >= size / kOf * kFilled) return memory.remove(i);
    }
  }
  return Buffer(bytes);
}

void give_back(Buffer buffer) noexcept {
  if (!is_recycled(buffer.bytes())) return;
  Kept& memory = kept();
  const std::lock_guard<std::mutex> lock(memory.mutex);
  while (memory.count == kMostBuffers || memory.bytes + buffer.bytes() > kMostRecycledBytes) {
    memory.remove(0);
  }
  memory.bytes += buffer.bytes();
  memory.buffers[memory.count++] = std::move(buffer);
}

size_t recycled_bytes() {
  Kept& memory = kept();
  const std::lock_guard<std::mutex> lock(memory.mutex);
  return memory.bytes;
}

}  // namespace moe
