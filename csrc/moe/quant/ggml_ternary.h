#pragma once
// GGUF's ternary formats: blocks of 256 columns, an f16 d, d · (q − 1).

#include "moe/quant/group_block.h"

namespace moe {

/// Both share a layout: two bits a weight. Their codes are not free (TQ1_0 has no 3): kGridPoints.
template <class Self>
struct TernaryBlock : GroupBlock<Self, 256, 128, Codes<2>, HalfScale> {
  static constexpr int kOffset = 1;
  static constexpr int kGridPoints = 3;
  static void quantise(const float* x, uint8_t* codes, f16& d);
};

/// 48 bytes of five ternary digits, 4 bytes of four, f16 d.
struct Tq1Format : TernaryBlock<Tq1Format> {
  static constexpr int64_t kFileBytes = 54;
  static void read(const uint8_t* file, uint8_t* codes, f16& d);
};

/// 64 bytes of two bits, f16 d.
struct Tq2Format : TernaryBlock<Tq2Format> {
  static constexpr int64_t kFileBytes = 66;
  static void read(const uint8_t* file, uint8_t* codes, f16& d);
};

}  // namespace moe
