#pragma once
// GGUF's K formats: blocks of 256 columns whose groups' scales are small integers. From floats:
// each group is fitted (quant/fit.h), its scale rounded to the block's steps, and its codes rounded
// again with that.

#include "moe/quant/ggml_simple.h"
#include "moe/quant/group_block.h"

namespace moe {

/// 16 bytes (s, m), 64 bytes of two bits, f16 d, f16 dmin: d s q − dmin m, groups of 16.
struct Q2KFormat : GroupBlock<Q2KFormat, 256, 16, Codes<2>, FourBitScales> {
  static constexpr int kOffset = 0;
  static constexpr int64_t kFileBytes = 84;
  static void read(const uint8_t* file, uint8_t* codes, Row& by);
  static void quantise(const float* x, uint8_t* codes, Row& by);
};

/// 32 bytes of third bits, 64 of two bits, 16 six-bit scales in 12 bytes, f16 d: d (s − 32) (q −
/// 4), groups of 16.
struct Q3KFormat : GroupBlock<Q3KFormat, 256, 16, Codes<3>, ByteScales<16, 32>> {
  static constexpr int kOffset = 4;
  static constexpr int64_t kFileBytes = 110;
  static void read(const uint8_t* file, uint8_t* codes, Row& by);
  static void quantise(const float* x, uint8_t* codes, Row& by);
};

/// f16 d, f16 dmin, 8 pairs of six-bit (s, m) in 12 bytes, 128 bytes: d s q − dmin m, groups of 32.
struct Q4KFormat : GroupBlock<Q4KFormat, 256, 32, Codes<4>, SixBitScales> {
  static constexpr int kOffset = 0;
  static constexpr int64_t kFileBytes = 144;
  static void read(const uint8_t* file, uint8_t* codes, Row& by);
  static void quantise(const float* x, uint8_t* codes, Row& by);
};

/// As Q4_K, with 32 bytes of fifth bits before the nibbles.
struct Q5KFormat : GroupBlock<Q5KFormat, 256, 32, Codes<5>, SixBitScales> {
  static constexpr int kOffset = 0;
  static constexpr int64_t kFileBytes = 176;
  static void read(const uint8_t* file, uint8_t* codes, Row& by);
  static void quantise(const float* x, uint8_t* codes, Row& by);
};

/// 128 bytes of nibbles, 64 of their upper two bits, 16 signed scales, f16 d: d s (q − 32), groups
/// of 16.
struct Q6KFormat : GroupBlock<Q6KFormat, 256, 16, Codes<6>, ByteScales<16, 128>> {
  static constexpr int kOffset = 32;
  static constexpr int64_t kFileBytes = 210;
  static void read(const uint8_t* file, uint8_t* codes, Row& by);
  static void quantise(const float* x, uint8_t* codes, Row& by);
};

/// f16 d, 8 six-bit scales (two high bits in a 16-bit word, nibbles in 4 bytes), 128 bytes:
/// d (s − 32) · kIq4Values[q], groups of 32.
struct Iq4XsFormat : GroupBlock<Iq4XsFormat, 256, 32, Iq4Codes, ByteScales<8, 32>> {
  static constexpr int kOffset = 128;
  static constexpr int64_t kFileBytes = 136;
  static void read(const uint8_t* file, uint8_t* codes, Row& by);
  static void quantise(const float* x, uint8_t* codes, Row& by);
};

}  // namespace moe
