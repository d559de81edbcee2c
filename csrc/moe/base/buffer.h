#pragma once
// Memory for weights, caches and scratch: aligned to a cache line, on huge pages when it is large
// (reading 4-KB pages reaches about 0.6 of the bandwidth that 2-MB pages reach), never initialised.

#include <cstddef>
#include <cstdint>
#include <utility>

namespace moe {

inline constexpr size_t kCacheLineBytes = 64;
inline constexpr size_t kHugePageBytes = size_t{2} << 20;

class Buffer {
 public:
  Buffer() = default;
  /// Throws std::bad_alloc where the memory cannot be had.
  explicit Buffer(size_t bytes);
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~Buffer();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }
  size_t bytes() const { return bytes_; }

  /// Makes it at least `bytes` large; what it held is lost when it has to grow.
  void reserve(size_t bytes) {
    if (bytes > bytes_) *this = Buffer(bytes);
  }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

/// A thread's own scratch of at least `bytes`, kept between calls so that decoding a token
/// allocates nothing. `slot` tells apart buffers that live at the same time.
enum class Scratch {
  kActivations,
  kHidden,
  kRows,
  kPlan,
  kTile,
  kAttention,
  kGathered,
  kRouter,
  kToken,
  kCount
};
std::byte* scratch(Scratch slot, size_t bytes);

template <class T>
T* scratch_of(Scratch slot, size_t count) {
  return reinterpret_cast<T*>(scratch(slot, count * sizeof(T)));
}

}  // namespace moe
