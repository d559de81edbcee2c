#include "moe/weights/packed_weight.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "moe/base/check.h"
#include "moe/base/half.h"
#include "support/reference.h"

namespace moe {
namespace {

TEST(PackedWeight, FloatsComeBackToTheBit) {
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 1}, {16, 2}, {17, 33}, {40, 72}}) {
    PackedWeight packed({Format::kF32}, 3, rows, cols);
    for (int64_t e = 0; e < 3; ++e) {
      const auto values = testing::normal(rows * cols, static_cast<uint64_t>(e + 1));
      packed.fill(e, values.data(), DType::kF32);
    }
    for (int64_t e = 0; e < 3; ++e) {
      const auto values = testing::normal(rows * cols, static_cast<uint64_t>(e + 1));
      std::vector<float> back(values.size());
      packed.unpack(e, back.data());
      EXPECT_EQ(back, values) << rows << " x " << cols;
    }
  }
}

TEST(PackedWeight, HalvesComeBackToTheBit) {
  constexpr int64_t kRows = 19, kCols = 37;
  std::vector<bf16> brain(kRows * kCols);
  std::vector<f16> half(kRows * kCols);
  const auto values = testing::normal(kRows * kCols, 9);
  for (size_t i = 0; i < values.size(); ++i) {
    brain[i] = to_bf16(values[i]);
    half[i] = to_f16(values[i]);
  }
  std::vector<float> back(values.size());
  PackedWeight packed_brain({Format::kBf16}, 1, kRows, kCols);
  packed_brain.fill(0, brain.data(), DType::kBf16);
  packed_brain.unpack(0, back.data());
  for (size_t i = 0; i < back.size(); ++i) EXPECT_EQ(back[i], to_float(brain[i]));
  PackedWeight packed_half({Format::kF16}, 1, kRows, kCols);
  packed_half.fill(0, half.data(), DType::kF16);
  packed_half.unpack(0, back.data());
  for (size_t i = 0; i < back.size(); ++i) EXPECT_EQ(back[i], to_float(half[i]));
}

TEST(PackedWeight, RunsOfRowsGiveTheBytesOfTheWhole) {
  constexpr int64_t kRows = 300, kCols = 256;  // 128 + 128 + 44
  const auto values = testing::normal(kRows * kCols, 11, 0.02);
  for (int f = 0; f < kFormatCount; ++f) {
    const auto format = static_cast<Format>(f);
    PackedWeight whole({format}, 1, kRows, kCols), parts({format}, 2, kRows, kCols);
    whole.fill(0, values.data(), DType::kF32);
    const int64_t step = parts.row_step(1) < 128 ? parts.row_step(1) * 3 : 128;
    for (int64_t first = 0; first < kRows; first += step) {
      const int64_t count = std::min(step, kRows - first);
      parts.fill(1, {first, count}, values.data() + first * kCols, DType::kF32);
    }
    const auto want = whole.bytes(0), got = parts.bytes(1);
    EXPECT_TRUE(std::equal(want.begin(), want.end(), got.begin(), got.end()))
        << format_info(format).name;
    for (const auto [first, count] :
         {std::pair<int64_t, int64_t>{8, 16}, {0, 8}, {256, 45}, {-16, 16}, {0, 0}, {304, 16}}) {
      EXPECT_THROW(parts.fill(1, {first, count}, values.data(), DType::kF32), ValueError);
    }
    EXPECT_THROW(parts.fill(2, {0, 128}, values.data(), DType::kF32), ValueError);
    PackedWeight copy({format}, 1, kRows, kCols);
    copy.fill_bytes(0, 0, want.first(want.size() / 3));
    copy.fill_bytes(0, static_cast<int64_t>(want.size() / 3), want.subspan(want.size() / 3));
    const auto copied = copy.bytes(0);
    EXPECT_TRUE(std::equal(want.begin(), want.end(), copied.begin(), copied.end()));
  }
}

TEST(PackedWeight, RepeatingSharesTheMemoryOfItsResidentExperts) {
  constexpr int64_t kRows = 40, kCols = 33, kExperts = 5, kResident = 2;
  PackedWeight pattern({Format::kBf16}, 1, 32, kCols);
  const auto values = testing::normal(32 * kCols, 3);
  pattern.fill(0, values.data(), DType::kF32);
  const PackedWeight packed = PackedWeight::repeating(pattern, kExperts, kRows, kResident);
  EXPECT_EQ(packed.experts(), kExperts);
  const PackedMatrix one = packed.matrix(0);
  EXPECT_EQ(packed.nbytes(), kResident * one.panels() * one.panel_bytes);
  std::vector<float> back(kRows * kCols), sample(32 * kCols);
  pattern.unpack(0, sample.data());
  for (int64_t e = 0; e < kExperts; ++e) {
    EXPECT_EQ(packed.matrix(e).data, packed.matrix(e % kResident).data);
    packed.unpack(e, back.data());
    for (int64_t r = 0; r < kRows; ++r) {
      const int64_t panel = (e % kResident * one.panels() + r / kPanelRows) % 2;
      for (int64_t k = 0; k < kCols; ++k) {
        // The last panel holds eight rows of the matrix only.
        const float expected =
            r < 32 ? sample[(panel * kPanelRows + r % kPanelRows) * kCols + k] : 0.0f;
        EXPECT_EQ(back[r * kCols + k], expected) << e << " " << r << " " << k;
      }
    }
  }
  EXPECT_NE(packed.matrix(0).data, packed.matrix(1).data);
  EXPECT_THROW(PackedWeight::repeating(pattern, 2, kRows, 3), ValueError);
  EXPECT_THROW(PackedWeight::repeating(packed, 2, kRows, 1), ValueError);
}

TEST(PackedWeight, GatheredExpertsShareTheMemoryTheyCameFrom) {
  constexpr int64_t kRows = 20, kCols = 70;
  PackedWeight a({Format::kInt8}, 2, kRows, kCols),
      b({Format::kF32, Format::kInt8}, 2, kRows, kCols);
  for (PackedWeight* weight : {&a, &b}) {
    for (int64_t e = 0; e < 2; ++e) {
      const auto values = testing::normal(kRows * kCols, static_cast<uint64_t>(e + 7));
      weight->fill(e, values.data(), DType::kF32);
    }
  }
  std::vector<float> want(kRows * kCols), got(kRows * kCols);
  b.unpack(0, want.data());
  const std::byte* place = b.matrix(0).data;
  const int64_t bytes = static_cast<int64_t>(a.bytes(1).size() + b.bytes(0).size());
  PackedWeight mixed = PackedWeight::gather({{&a, 1}, {&b, 0}, {&a, 1}});
  {  // The memory outlives the weights that brought it.
    const PackedWeight gone_a = std::move(a), gone_b = std::move(b);
  }
  EXPECT_EQ(mixed.experts(), 3);
  EXPECT_EQ(mixed.matrix(1).data, place);
  EXPECT_EQ(mixed.matrix(0).data, mixed.matrix(2).data);
  EXPECT_EQ(mixed.nbytes(), bytes);
  EXPECT_EQ(mixed.format(0), Format::kInt8);
  EXPECT_EQ(mixed.format(1), Format::kF32);
  mixed.unpack(1, got.data());
  EXPECT_EQ(got, want);
  EXPECT_THROW(mixed.fill(0, want.data(), DType::kF32), ValueError);
  EXPECT_THROW(PackedWeight::gather({{&mixed, 3}}), ValueError);
  EXPECT_THROW(PackedWeight::gather({}), ValueError);
  const PackedWeight other({Format::kInt8}, 1, kRows, kCols + 1);
  EXPECT_THROW(PackedWeight::gather({{&mixed, 0}, {&other, 0}}), ValueError);
}

TEST(PackedWeight, TakesTheBytesThatItGave) {
  for (int i = 0; i < kFormatCount; ++i) {
    const Format format = static_cast<Format>(i);
    constexpr int64_t kRows = 18, kCols = 70;
    PackedWeight from({format}, 1, kRows, kCols), to({format}, 2, kRows, kCols);
    const auto values = testing::normal(kRows * kCols, 5, 0.02);
    from.fill(0, values.data(), DType::kF32);
    to.fill_bytes(1, 0, from.bytes(0));
    std::vector<float> want(values.size()), got(values.size());
    from.unpack(0, want.data());
    to.unpack(1, got.data());
    EXPECT_EQ(got, want) << format_info(format).name;
    EXPECT_THROW(to.fill_bytes(0, 2, from.bytes(0)), ValueError);
    EXPECT_THROW(to.fill_bytes(2, 0, from.bytes(0)), ValueError);
  }
}

TEST(PackedWeight, EveryExpertMayHaveItsOwnFormat) {
  PackedWeight packed({Format::kF32, Format::kInt8, Format::kBf16}, 3, 20, 50);
  int64_t bytes = 0;
  for (int64_t e = 0; e < 3; ++e) {
    bytes += packed.matrix(e).panel_bytes * packed.matrix(e).panels();
    const auto values = testing::normal(20 * 50, static_cast<uint64_t>(e));
    packed.fill(e, values.data(), DType::kF32);
  }
  EXPECT_EQ(packed.nbytes(), bytes);
  for (int64_t e = 0; e < 3; ++e) {
    const auto values = testing::normal(20 * 50, static_cast<uint64_t>(e));
    std::vector<float> back(values.size());
    packed.unpack(e, back.data());
    for (size_t i = 0; i < back.size(); ++i) EXPECT_NEAR(back[i], values[i], 0.03);
  }
}

TEST(PackedWeight, RefusesNumbersThatItsCodesLack) {
  for (int f = 0; f < kFormatCount; ++f) {
    const auto format = static_cast<Format>(f);
    const FormatInfo& info = format_info(format);
    const bool floats = info.group == 0 && info.trailer_bytes == 0;
    for (const float odd : {NAN, INFINITY, -INFINITY}) {
      PackedWeight packed({format}, 2, 40, 512);
      auto values = testing::normal(40 * 512, 1);
      values[33 * 512 + 300] = odd;
      if (floats || (info.scale_rows != 0 && std::isnan(odd))) {
        packed.fill(1, values.data(), DType::kF32);
        std::vector<float> back(values.size());
        packed.unpack(1, back.data());
        EXPECT_FALSE(std::isfinite(back[33 * 512 + 300])) << info.name;
        continue;
      }
      try {
        packed.fill(1, values.data(), DType::kF32);
        ADD_FAILURE() << info.name << " took " << odd;
      } catch (const ValueError& error) {
        EXPECT_NE(std::string(error.what()).find("row 33, column 300 of expert 1"),
                  std::string::npos)
            << error.what();
      }
    }
  }
}

TEST(PackedWeight, RefusesNumbersThatItsScalesLack) {
  for (int f = 0; f < kFormatCount; ++f) {
    const auto format = static_cast<Format>(f);
    const FormatInfo& info = format_info(format);
    int refused = 0;
    for (const float large : {3e3f, 1e5f, 1e6f, 1e8f, 3e38f}) {
      PackedWeight packed({format}, 2, 40, 512);
      auto values = testing::normal(40 * 512, 1);
      values[33 * 512 + 300] = -large;
      try {
        packed.fill(1, values.data(), DType::kF32);
      } catch (const ValueError& error) {
        ++refused;
        EXPECT_NE(std::string(error.what()).find("row 33, column 300 of expert 1"),
                  std::string::npos)
            << error.what();
        continue;
      }
      EXPECT_EQ(refused, 0) << info.name << " takes " << large << " and less is refused";
      std::vector<float> back(values.size());
      packed.unpack(1, back.data());
      for (const float kept : back) ASSERT_TRUE(std::isfinite(kept)) << info.name << " " << large;
      // Formats of two or three levels keep the mean of a group, not its largest number.
      if (info.max_error < 0.05) {
        EXPECT_NEAR(back[33 * 512 + 300], -large, large / 4) << info.name;
      }
    }
  }
}

TEST(PackedWeight, RefusesWhatCannotBe) {
  EXPECT_THROW(PackedWeight({Format::kF32}, 1, 0, 4), ValueError);
  EXPECT_THROW(PackedWeight({Format::kF32}, -1, 4, 4), ValueError);
  EXPECT_THROW(PackedWeight({Format::kF32}, 1 << 20, int64_t{1} << 30, int64_t{1} << 30),
               ValueError);
  EXPECT_THROW(PackedWeight({Format::kF32, Format::kF32}, 3, 4, 4), ValueError);
  PackedWeight packed({Format::kF32}, 2, 4, 4);
  const float values[16] = {};
  EXPECT_THROW(packed.fill(2, values, DType::kF32), ValueError);
  float out[16];
  EXPECT_THROW(packed.unpack(-1, out), ValueError);
  const PackedWeight mixed({Format::kF32, Format::kInt8}, 2, 4, 4);
  EXPECT_THROW(mixed.row_step(2), ValueError);
  EXPECT_THROW(mixed.row_step(-1), ValueError);
}

}  // namespace
}  // namespace moe
