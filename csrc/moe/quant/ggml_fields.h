#pragma once
// Bit fields of GGUF's blocks.

#include <cstdint>
#include <cstring>

#include "moe/base/half.h"

namespace moe {

static inline f16 half_at(const uint8_t* file) {
  f16 value;
  std::memcpy(&value, file, 2);
  return value;
}

/// Field number `i` of `bits` bits: each `run` bytes hold all their lowest fields, then all their
/// next ones, and so on.
static inline int field(const uint8_t* file, int run, int bits, int i) {
  const int per_run = run * (8 / bits);
  const int byte = i / per_run * run + i % run, shift = i % per_run / run * bits;
  return (file[byte] >> shift) & ((1 << bits) - 1);
}

}  // namespace moe
