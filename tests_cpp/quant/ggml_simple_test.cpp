#include "moe/quant/ggml_simple.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace moe {
namespace {

TEST(GgmlSimple, NibblesAreColumnsSixteenApart) {
  uint8_t file[18] = {};
  file[1] = 0x3c;  // 1.0
  for (int j = 0; j < 16; ++j) file[2 + j] = static_cast<uint8_t>(j | (15 - j) << 4);
  uint8_t codes[32];
  f16 d;
  Q4_0Format::read(file, codes, d);
  EXPECT_EQ(to_float(d), 1.0f);
  for (int j = 0; j < 16; ++j) {
    EXPECT_EQ(codes[j], j);
    EXPECT_EQ(codes[16 + j], 15 - j);
  }
}

TEST(GgmlSimple, TheFifthBitIsAbove) {
  uint8_t file[24] = {0, 0x3c, 0, 0x40, 0x01, 0x00, 0x02, 0x80};
  uint8_t codes[32];
  Q5_1Format::Row by;
  Q5_1Format::read(file, codes, by);
  EXPECT_EQ(to_float(by.m), 2.0f);
  for (int k = 0; k < 32; ++k) EXPECT_EQ(codes[k], k == 0 || k == 17 || k == 31 ? 16 : 0) << k;
}

// The file's scales stay as they are, but for the one byte that ggml reads as zero.
TEST(GgmlSimple, ScalesOfNvfp4AreUnsigned) {
  for (int code = 0; code < 256; ++code) {
    TinyFloatScales<4>::Row by{};
    by.e[2] = static_cast<uint8_t>(code);
    std::byte stored[TinyFloatScales<4>::kBytes] = {};
    TinyFloatScales<4>::put(stored, 5, by);
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    double want = exponent == 0 ? mantissa / 512.0 : std::ldexp(1 + mantissa / 8.0, exponent - 7);
    if (code == 127) want = 0.0;
    EXPECT_EQ(TinyFloatScales<4>::read(stored, 5, 2).scale, want / 2) << code;
  }
}

TEST(GgmlSimple, ABitIsASign) {
  uint8_t file[18] = {};
  file[1] = 0x3c;        // d = 1
  file[2] = 0b10000001;  // columns 0 and 7
  file[17] = 0x80;       // column 127
  uint8_t codes[128];
  f16 d;
  Q1_0Format::read(file, codes, d);
  for (int k = 0; k < 128; ++k) EXPECT_EQ(codes[k], k == 0 || k == 7 || k == 127 ? 1 : 0) << k;
}

}  // namespace
}  // namespace moe
