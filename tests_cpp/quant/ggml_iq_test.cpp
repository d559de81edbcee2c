#include "moe/quant/ggml_iq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "moe/base/buffer.h"
#include "moe/base/rng.h"

namespace moe {
namespace {

template <class F>
struct Blocks : ::testing::Test {};
using Formats = ::testing::Types<Iq1SFormat, Iq1MFormat, Iq2XxsFormat, Iq2XsFormat, Iq2SFormat,
                                 Iq3XxsFormat, Iq3SFormat>;
TYPED_TEST_SUITE(Blocks, Formats);

// A row's bits of a weight: a value's own, then d and the steps.
TYPED_TEST(Blocks, TakeTheBitsOfTheirValues) {
  constexpr bool kMoved = TypeParam::kOffset == 9;
  const int value_bits = kMoved ? 2 : TypeParam::kFileBytes < 90 ? 3 : 4;
  const int moved_bits = !kMoved ? 0 : TypeParam::kGroup == 32 ? 8 : 32;
  const int bits = 256 * value_bits + moved_bits + 16 + 4 * (256 / TypeParam::kGroup);
  EXPECT_EQ(TypeParam::kBlockBytes, kPanelRows * bits / 8);
}

// A block reads the same whatever stands in the rows beside it.
TYPED_TEST(Blocks, KeepRowsApart) {
  constexpr size_t kBytes = TypeParam::kFileBytes;
  std::vector<std::byte> file(kPanelRows * kBytes), zeros(kBytes);
  for (size_t i = 0; i < file.size(); ++i) file[i] = static_cast<std::byte>(random_bits(3, i));
  const std::byte* rows[kPanelRows];
  for (size_t r = 0; r < kPanelRows; ++r) rows[r] = file.data() + r * kBytes;
  Buffer full(TypeParam::kBlockBytes), alone(TypeParam::kBlockBytes);
  TypeParam::repack(rows, 1, full.data());
  for (int r = 0; r < kPanelRows; ++r) {
    const std::byte* one[kPanelRows];
    std::fill_n(one, kPanelRows, zeros.data());
    one[r] = rows[r];
    TypeParam::repack(one, 1, alone.data());
    for (int k = 0; k < 256; ++k) {
      const float want = TypeParam::at(full.data(), 256, r, k);
      const float got = TypeParam::at(alone.data(), 256, r, k);
      EXPECT_EQ(std::memcmp(&got, &want, 4), 0) << r << " " << k;
    }
  }
}

template <class Points>
int size_in(const Points& grid, const GridRow& row, int k) {
  return grid.byte(row.code[k / Points::kWidth], k % Points::kWidth) - 128;
}
int size_at(Iq1SFormat, const GridRow& row, int k) { return size_in(kIq1Grid, row, k); }
int size_at(Iq1MFormat, const GridRow& row, int k) { return size_in(kIq1Grid, row, k); }
int size_at(Iq2XxsFormat, const GridRow& row, int k) { return size_in(kIq2XxsGrid, row, k); }
int size_at(Iq2XsFormat, const GridRow& row, int k) { return size_in(kIq2XsGrid, row, k); }
int size_at(Iq2SFormat, const GridRow& row, int k) { return size_in(kIq2SGrid, row, k); }
int size_at(Iq3XxsFormat, const GridRow& row, int k) { return size_in(kIq3XxsGrid, row, k); }
int size_at(Iq3SFormat, const GridRow& row, int k) { return size_in(kIq3SGrid, row, k); }

template <class F>
float unit_of(F) {
  return 0.125f;
}
float unit_of(Iq3XxsFormat) { return 0.25f; }
float unit_of(Iq3SFormat) { return 1.0f; }

TEST(GgmlIq, SevenSignsAreCompletedToAnEvenNumber) {
  uint8_t file[66] = {};
  file[1] = 0x3c;       // d = 1
  file[2] = 1;          // columns 0 to 7: 43, then 8
  file[6] = 0b0000001;  // the first sign code: column 0, and so column 7
  file[9] = 0x50;       // step 5
  GridRow row{};
  Iq2XxsFormat::read(file, row);
  EXPECT_EQ(row.code[0], 1);
  EXPECT_EQ(row.signs[0], 0b10000001);
  EXPECT_EQ(row.step[0], 5);
  std::vector<std::byte> zeros(66);
  const std::byte* rows[kPanelRows];
  std::fill_n(rows, kPanelRows, zeros.data());
  rows[7] = reinterpret_cast<const std::byte*>(file);
  Buffer panel(Iq2XxsFormat::kBlockBytes);
  Iq2XxsFormat::repack(rows, 1, panel.data());
  const float scale = 11.0f / 8.0f;
  EXPECT_EQ(Iq2XxsFormat::at(panel.data(), 256, 7, 0), -43.0f * scale);
  EXPECT_EQ(Iq2XxsFormat::at(panel.data(), 256, 7, 1), 8.0f * scale);
  EXPECT_EQ(Iq2XxsFormat::at(panel.data(), 256, 7, 7), -8.0f * scale);
  EXPECT_EQ(Iq2XxsFormat::at(panel.data(), 256, 7, 32), 1.0f);
  EXPECT_EQ(Iq2XxsFormat::at(panel.data(), 256, 6, 0), 0.0f);
}

TEST(GgmlIq, TheScaleOfIq1MIsSpreadOverFourWords) {
  uint8_t file[56] = {};
  file[49] = 0x00;  // the nibbles of 1.0 in half precision, 0x3c00, the lowest first
  file[51] = 0x00;
  file[53] = 0xc0;
  file[55] = 0x30;
  file[48] = 5;     // the first step
  file[32] = 0x80;  // the second code is moved down
  GridRow row{};
  Iq1MFormat::read(file, row);
  EXPECT_EQ(row.d.bits, 0x3c00);
  EXPECT_EQ(row.step[0], 5);
  EXPECT_EQ(row.step[1], 0);
  EXPECT_EQ(row.signs[0], 1);
  EXPECT_EQ(row.signs[1], 0);
}

// Every code, sign and step of every row comes back.
TYPED_TEST(Blocks, ReadBackWhatTheFileSays) {
  constexpr size_t kBytes = TypeParam::kFileBytes;
  std::vector<uint8_t> file(kPanelRows * kBytes);
  for (size_t i = 0; i < file.size(); ++i) file[i] = static_cast<uint8_t>(random_bits(9, i));
  const std::byte* rows[kPanelRows];
  for (size_t r = 0; r < kPanelRows; ++r) {
    rows[r] = reinterpret_cast<const std::byte*>(file.data() + r * kBytes);
  }
  Buffer panel(TypeParam::kBlockBytes);
  TypeParam::repack(rows, 1, panel.data());
  constexpr bool kMoved = TypeParam::kOffset == 9;
  constexpr TypeParam kFormat;
  for (int r = 0; r < kPanelRows; ++r) {
    GridRow row{};
    TypeParam::read(file.data() + static_cast<size_t>(r) * kBytes, row);
    const float d = to_float(row.d);
    if (!(d == d) || d > 1e30f) continue;
    for (int k = 0; k < 256; ++k) {
      const int signs = row.signs[k / 8];
      int value = size_at(kFormat, row, k);
      if (kMoved) {
        value += signs != 0 ? 1 : -1;
      } else if ((signs >> (k % 8) & 1) != 0) {
        value = -value;
      }
      const auto step = static_cast<float>(2 * row.step[k / TypeParam::kGroup] + 1);
      EXPECT_EQ(TypeParam::at(panel.data(), 256, r, k),
                static_cast<float>(value) * step * unit_of(kFormat) * d)
          << r << " " << k;
    }
  }
}

}  // namespace
}  // namespace moe
