#pragma once
// Memory of large results that nobody holds any more, for the next ones. Fresh pages cost the
// system a zeroing each: a sixth of a prompt's time.

#include "moe/base/buffer.h"

namespace moe {

/// What the process keeps at most.
inline constexpr size_t kMostRecycledBytes = size_t{128} << 20;
/// Whether memory of this size is kept: small blocks the process's allocator keeps itself.
constexpr bool is_recycled(size_t bytes) {
  return bytes >= size_t{1} << 20 && bytes <= kMostRecycledBytes / 2;
}

/// At least `bytes`, not initialised: what was given back, where something fits closely, or fresh
/// memory. Throws std::bad_alloc. Thread-safe.
Buffer take_recycled(size_t bytes);
/// Keeps a buffer of such a size for later, in place of those that were given back first; frees
/// others. Thread-safe.
void give_back(Buffer buffer) noexcept;
/// Bytes that are kept for later.
size_t recycled_bytes();

}  // namespace moe
