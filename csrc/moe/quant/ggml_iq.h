#pragma once
// GGUF's IQ1, IQ2 and IQ3: blocks of 256 columns, codes that name points of a grid
// (quant/ggml_grids.h). Each struct's comment says what a block is in a file. From floats: a
// search over scales, each with the nearest points (quant/grid_fit.h).

#include "moe/quant/grid_block.h"

namespace moe {

// The largest size, and a size with its sign; the sign is a code's highest bit.
static constexpr uint8_t kIq2Bytes[16] = {51, 68, 86, 43, 35, 18, 0,  43,
                                          43, 43, 43, 43, 43, 43, 43, 43};
static constexpr uint8_t kIq3XxsBytes[16] = {66, 74, 82, 90, 98, 106, 114, 124,
                                             58, 50, 42, 34, 26, 18,  10,  0};
struct Iq2Table {
  [[gnu::always_inline]] static constexpr const uint8_t* bytes() { return kIq2Bytes; }
};
struct Iq3XxsTable {
  [[gnu::always_inline]] static constexpr const uint8_t* bytes() { return kIq3XxsBytes; }
};
template <const auto& kGrid>
using Iq2Points = SignedPoints<kGrid, SignedSizeCodes<Iq2Table>, 43>;
using Iq3XxsPoints = SignedPoints<kIq3XxsGrid, TableCodes<4, Iq3XxsTable>, 62>;
// Odd numbers from −15 to 15: twice the code, less 15.
using Iq3SPoints = SignedPoints<kIq3SGrid, Codes<4, 1>, 15>;

/// f16 d, 8 × (four 8-bit codes, a word of four 7-bit sign codes and a step of 4 bits):
/// d (2 s + 1) / 8, groups of 32.
struct Iq2XxsFormat : GridBlock<Iq2XxsFormat, 32, Iq2Points<kIq2XxsGrid>, 3> {
  static constexpr int64_t kFileBytes = 66;
  static void read(const uint8_t* file, GridRow& row);
  static void quantise(const float* x, GridRow& row);
};

/// f16 d, 32 × (9-bit code, 7-bit sign code), 16 nibbles: d (2 s + 1) / 8, groups of 16.
struct Iq2XsFormat : GridBlock<Iq2XsFormat, 16, Iq2Points<kIq2XsGrid>, 3> {
  static constexpr int64_t kFileBytes = 74;
  static void read(const uint8_t* file, GridRow& row);
  static void quantise(const float* x, GridRow& row);
};

/// f16 d, 32 low bytes of codes, 256 signs, 32 × 2 upper bits, 16 nibbles: d (2 s + 1) / 8, groups
/// of 16.
struct Iq2SFormat : GridBlock<Iq2SFormat, 16, Iq2Points<kIq2SGrid>, 3> {
  static constexpr int64_t kFileBytes = 82;
  static void read(const uint8_t* file, GridRow& row);
  static void quantise(const float* x, GridRow& row);
};

/// f16 d, 64 codes of four columns, 8 words of four 7-bit sign codes and a step of 4 bits:
/// d (2 s + 1) / 4, groups of 32.
struct Iq3XxsFormat : GridBlock<Iq3XxsFormat, 32, Iq3XxsPoints, 2> {
  static constexpr int64_t kFileBytes = 98;
  static void read(const uint8_t* file, GridRow& row);
  static void quantise(const float* x, GridRow& row);
};

/// f16 d, 64 low bytes of codes of four columns, 64 ninth bits, 256 signs, 8 nibbles:
/// d (2 s + 1), groups of 32.
struct Iq3SFormat : GridBlock<Iq3SFormat, 32, Iq3SPoints, 0> {
  static constexpr int64_t kFileBytes = 110;
  static void read(const uint8_t* file, GridRow& row);
  static void quantise(const float* x, GridRow& row);
};

/// f16 d, 32 low bytes of codes, 8 × (four times 3 upper bits, a step of 3 bits, a bit that moves
/// down): d (2 s + 1) (g ± 1/8), groups of 32.
struct Iq1SFormat : GridBlock<Iq1SFormat, 32, MovedPoints<32>, 3> {
  static constexpr int64_t kFileBytes = 50;
  static void read(const uint8_t* file, GridRow& row);
  static void quantise(const float* x, GridRow& row);
};

/// 32 low bytes of codes, 32 nibbles (3 upper bits, a bit that moves down), 4 words of four steps
/// of 3 bits and a quarter of the f16 d: d (2 s + 1) (g ± 1/8), groups of 16.
struct Iq1MFormat : GridBlock<Iq1MFormat, 16, MovedPoints<8>, 3> {
  static constexpr int64_t kFileBytes = 56;
  static void read(const uint8_t* file, GridRow& row);
  static void quantise(const float* x, GridRow& row);
};

}  // namespace moe
