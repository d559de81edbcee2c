#include "moe/quant/ggml_k.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "moe/base/buffer.h"
#include "support/reference.h"

namespace moe {
namespace {

TEST(GgmlK, SixBitPairsComeFromTwelveBytes) {
  uint8_t file[144] = {};
  file[1] = 0x3c;  // d = 1
  file[3] = 0x40;  // dmin = 2
  // s0 = 63, m0 = 33; s4 = 0b101010, m4 = 0b010101.
  file[4] = 63 | 0b10 << 6;
  file[8] = 33 | 0b01 << 6;
  file[12] = 0b1010 | 0b0101 << 4;
  file[16] = 0x7f;  // column 0: 15, column 32: 7
  uint8_t codes[256];
  Q4KFormat::Row by;
  Q4KFormat::read(file, codes, by);
  EXPECT_EQ(by.s[0], 63);
  EXPECT_EQ(by.m[0], 33);
  EXPECT_EQ(by.s[4], 0b101010);
  EXPECT_EQ(by.m[4], 0b010101);
  EXPECT_EQ(codes[0], 15);
  EXPECT_EQ(codes[32], 7);
  Buffer panel(Q4KFormat::kBlockBytes);
  std::vector<std::byte> zeros(144);
  const std::byte* rows[kPanelRows];
  for (auto& row : rows) row = zeros.data();
  rows[9] = reinterpret_cast<const std::byte*>(file);
  Q4KFormat::repack(rows, 1, panel.data());
  EXPECT_EQ(Q4KFormat::at(panel.data(), 256, 9, 0), 63.0f * 15 - 2.0f * 33);
  EXPECT_EQ(Q4KFormat::at(panel.data(), 256, 9, 130), -2.0f * 0b010101);
  EXPECT_EQ(Q4KFormat::at(panel.data(), 256, 8, 0), 0.0f);
}

// Every pair of six bits survives in memory, next to any others.
TEST(GgmlK, SixBitScalesKeepEveryValue) {
  std::byte stored[SixBitScales::kBytes] = {};
  for (int row = 0; row < kPanelRows; ++row) {
    SixBitScales::Row by{{0x3c00}, {0x3c00}, {}, {}};
    for (int g = 0; g < 8; ++g) {
      by.s[g] = static_cast<uint8_t>((row * 8 + g * 13) % 64);
      by.m[g] = static_cast<uint8_t>((63 - row * 3 - g * 7) & 63);
    }
    SixBitScales::put(stored, row, by);
  }
  for (int row = 0; row < kPanelRows; ++row) {
    for (int g = 0; g < 8; ++g) {
      const ScaleMin by = SixBitScales::read(stored, row, g);
      EXPECT_EQ(by.scale, static_cast<float>((row * 8 + g * 13) % 64));
      EXPECT_EQ(by.min, -static_cast<float>((63 - row * 3 - g * 7) & 63));
    }
  }
}

// One huge weight takes its group's precision, not the block's.
TEST(GgmlK, AnOutlierCostsItsOwnGroupOnly) {
  std::vector<float> x = testing::normal(256, 3, 0.05);
  x[40] = 1.0f;
  uint8_t codes[256];
  Q4KFormat::Row by;
  Q4KFormat::quantise(x.data(), codes, by);
  std::byte stored[SixBitScales::kBytes] = {};
  SixBitScales::put(stored, 0, by);
  double error = 0.0, power = 0.0;
  for (int k = 0; k < 256; ++k) {
    if (k / 32 == 1) continue;
    const ScaleMin scale = SixBitScales::read(stored, 0, k / 32);
    const double e = scale.scale * codes[k] + scale.min - x[static_cast<size_t>(k)];
    error += e * e;
    power += static_cast<double>(x[static_cast<size_t>(k)]) * x[static_cast<size_t>(k)];
  }
  EXPECT_LE(error, 0.02 * power);
}

}  // namespace
}  // namespace moe
