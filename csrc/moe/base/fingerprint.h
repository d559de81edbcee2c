#pragma once
// Some numbers of somebody else's tensor, to notice that it was written into.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "moe/base/rng.h"

namespace moe {

/// One element of each of some equal pieces of a tensor: where they are, and what they were.
class Fingerprint {
 public:
  /// Of `count` elements of 1 to 8 bytes in `pieces` pieces (of fewer elements: all of them);
  /// `address(i)` is where element i lies.
  template <class Address>
  Fingerprint(int64_t count, int64_t item_bytes, int64_t pieces, Address address)
      : item_bytes_(static_cast<size_t>(item_bytes)) {
    pieces = std::min(pieces, count);
    places_.reserve(static_cast<size_t>(pieces));
    for (int64_t i = 0; i < pieces; ++i) {
      const int64_t first = count / pieces * i;
      const int64_t size = i + 1 < pieces ? count / pieces : count - first;
      // Not at the same place in each: a column or a row may be all that is written.
      const auto within = static_cast<int64_t>(random_bits(count, i) % static_cast<uint64_t>(size));
      const auto* at = static_cast<const std::byte*>(address(first + within));
      places_.push_back({at, load(at)});
    }
  }

  /// Whether they are what they were. The memory must still be the tensor's.
  bool same() const noexcept {
    // They lie in as many pages: all are asked for before one is waited for.
    for (const Place& place : places_) __builtin_prefetch(place.at);
    return std::all_of(places_.begin(), places_.end(),
                       [&](const Place& place) { return load(place.at) == place.value; });
  }

 private:
  struct Place {
    const std::byte* at;
    uint64_t value;
  };

  uint64_t load(const std::byte* at) const noexcept {
    uint64_t value = 0;
    std::memcpy(&value, at, item_bytes_);
    return value;
  }

  size_t item_bytes_;
  std::vector<Place> places_;
};

}  // namespace moe
