#pragma once
// GGUF's IQ1, IQ2 and IQ3: blocks of 256 columns, codes that name points of a grid
// (quant/ggml_grids.h). Each struct's comment says what a block is in a file. From floats: a
// search over scales, each with the nearest points (quant/grid_fit.h).

#include "moe/quant/grid_block.h"

namespace moe {

using Iq2XxsPoints = SignedPoints<kIq2XxsGrid, NoHighBits, SevenSigns>;
using Iq2XsPoints = SignedPoints<kIq2XsGrid, HighMasks<4>, SevenSigns>;
using Iq2SPoints = SignedPoints<kIq2SGrid, HighFields<2, 4>, EightSigns>;
using Iq3XxsPoints = SignedPoints<kIq3XxsGrid, NoHighBits, SevenSigns>;
using Iq3SPoints = SignedPoints<kIq3SGrid, HighFields<1, 8>, EightSigns>;

/// f16 d, 8 × (four 8-bit codes, a word of four 7-bit sign codes and a step of 4 bits):
/// d (2 s + 1) / 8, groups of 32.
struct Iq2XxsFormat : GridBlock<Iq2XxsFormat, 32, Iq2XxsPoints,  //
                                NibbleSteps<8, 3, 8 * Iq2XxsPoints::kBytes>> {
  static constexpr int64_t kFileBytes = 66;
  static void read(const uint8_t* file, GridRow& row);
  static void quantise(const float* x, GridRow& row);
};

/// f16 d, 32 × (9-bit code, 7-bit sign code), 16 nibbles: d (2 s + 1) / 8, groups of 16.
struct Iq2XsFormat : GridBlock<Iq2XsFormat, 16, Iq2XsPoints,  //
                               NibbleSteps<16, 3, 8 * Iq2XsPoints::kBytes>> {
  static constexpr int64_t kFileBytes = 74;
  static void read(const uint8_t* file, GridRow& row);
  static void quantise(const float* x, GridRow& row);
};

/// f16 d, 32 low bytes of codes, 256 signs, 32 × 2 upper bits, 16 nibbles: d (2 s + 1) / 8, groups
/// of 16.
struct Iq2SFormat : GridBlock<Iq2SFormat, 16, Iq2SPoints,  //
                              NibbleSteps<16, 3, 8 * Iq2SPoints::kBytes>> {
  static constexpr int64_t kFileBytes = 82;
  static void read(const uint8_t* file, GridRow& row);
  static void quantise(const float* x, GridRow& row);
};

/// f16 d, 64 codes of four columns, 8 words of four 7-bit sign codes and a step of 4 bits:
/// d (2 s + 1) / 4, groups of 32.
struct Iq3XxsFormat : GridBlock<Iq3XxsFormat, 32, Iq3XxsPoints,  //
                                NibbleSteps<8, 2, 8 * Iq3XxsPoints::kBytes>> {
  static constexpr int64_t kFileBytes = 98;
  static void read(const uint8_t* file, GridRow& row);
  static void quantise(const float* x, GridRow& row);
};

/// f16 d, 64 low bytes of codes of four columns, 64 ninth bits, 256 signs, 8 nibbles:
/// d (2 s + 1), groups of 32.
struct Iq3SFormat : GridBlock<Iq3SFormat, 32, Iq3SPoints,  //
                              NibbleSteps<8, 0, 8 * Iq3SPoints::kBytes>> {
  static constexpr int64_t kFileBytes = 110;
  static void read(const uint8_t* file, GridRow& row);
  static void quantise(const float* x, GridRow& row);
};

/// f16 d, 32 low bytes of codes, 8 × (four times 3 upper bits, a step of 3 bits, a bit that moves
/// down): d (2 s + 1) (g ± 1/8), groups of 32.
struct Iq1SFormat : GridBlock<Iq1SFormat, 32, MovedPoints<true>, UnitSteps> {
  static constexpr int64_t kFileBytes = 50;
  static void read(const uint8_t* file, GridRow& row);
  static void quantise(const float* x, GridRow& row);
};

/// 32 low bytes of codes, 32 nibbles (3 upper bits, a bit that moves down), 4 words of four steps
/// of 3 bits and a quarter of the f16 d: d (2 s + 1) (g ± 1/8), groups of 16.
struct Iq1MFormat : GridBlock<Iq1MFormat, 16, MovedPoints<false>, SplitSteps> {
  static constexpr int64_t kFileBytes = 56;
  static void read(const uint8_t* file, GridRow& row);
  static void quantise(const float* x, GridRow& row);
};

}  // namespace moe
