#pragma once
// Random numbers that depend on (seed, counter) alone: the same on every machine and for any
// thread.

#include <cstdint>

namespace moe {

/// SplitMix64 (Steele, Lea, Flood 2014): a bijection of the counter, well mixed.
static inline uint64_t random_bits(uint64_t seed, uint64_t counter) {
  uint64_t z = seed + (counter + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

/// Uniform in [0, 1), 53 bits.
static inline double random_uniform(uint64_t seed, uint64_t counter) {
  return static_cast<double>(random_bits(seed, counter) >> 11) * 0x1p-53;
}

}  // namespace moe
