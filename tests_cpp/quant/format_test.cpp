#include "moe/quant/format.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>

#include "moe/base/buffer.h"
#include "moe/base/check.h"
#include "support/reference.h"

namespace moe {
namespace {

class EveryFormat : public ::testing::TestWithParam<int> {
 protected:
  const Format format_ = static_cast<Format>(GetParam());
  const FormatInfo& info_ = format_info(format_);
};
INSTANTIATE_TEST_SUITE_P(Format, EveryFormat, ::testing::Range(0, kFormatCount),
                         [](const auto& format) {
                           return std::string(format_info(static_cast<Format>(format.param)).name);
                         });

TEST_P(EveryFormat, IsFoundByItsName) {
  EXPECT_FALSE(info_.name.empty());
  EXPECT_EQ(parse_format(info_.name), format_);
}

// Rows of very different sizes, each within the bound.
TEST_P(EveryFormat, ReadsBackWhatItWroteWithinItsBound) {
  for (int64_t columns : {256, 768, 2048}) {
    const int64_t depth = info_.blocks(columns) * info_.depth;
    std::vector<float> rows = testing::normal(kPanelRows * depth, 5, 0.02);
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i] *= std::ldexp(1.0f, 2 * static_cast<int>(i / static_cast<size_t>(depth) % 4));
    }
    Buffer panel(static_cast<size_t>(info_.panel_bytes(depth)));
    info_.encode(rows.data(), depth, panel.data());
    // A few weights are no sample: the bound is for the whole panel then.
    const int rows_together = depth < 512 ? kPanelRows : 1;
    for (int first = 0; first < kPanelRows; first += rows_together) {
      double error = 0.0;
      for (int r = first; r < first + rows_together; ++r) {
        double row_error = 0.0, power = 0.0;
        for (int64_t k = 0; k < depth; ++k) {
          const double want = rows[static_cast<size_t>(r * depth + k)];
          const double got = info_.at(panel.data(), depth, r, k);
          row_error += (got - want) * (got - want);
          power += want * want;
        }
        error += row_error / power;
      }
      EXPECT_LE(error / rows_together, info_.max_error) << depth << " columns, row " << first;
    }
  }
}

// A row's weights have nothing to do with its neighbours'.
TEST_P(EveryFormat, KeepsRowsApart) {
  const int64_t depth = 4 * info_.depth;
  std::vector<float> rows(static_cast<size_t>(kPanelRows * depth), 0.0f);
  for (int64_t k = 0; k < depth; ++k) rows[static_cast<size_t>(3 * depth + k)] = 1.0f;
  Buffer panel(static_cast<size_t>(info_.panel_bytes(depth)));
  info_.encode(rows.data(), depth, panel.data());
  for (int r = 0; r < kPanelRows; ++r) {
    for (int64_t k = 0; k < depth; ++k) {
      EXPECT_NEAR(info_.at(panel.data(), depth, r, k), r == 3 ? 1.0f : 0.0f, 1e-3f);
    }
  }
}

TEST_P(EveryFormat, PanelsAreWholeCacheLinesAndHoldWhatTheyMust) {
  for (int64_t cols : {1, 7, 64, 513}) {
    const int64_t bytes = info_.panel_bytes(cols);
    EXPECT_EQ(bytes % 64, 0);
    EXPECT_GE(info_.blocks(cols) * info_.depth, cols);
    EXPECT_LT((info_.blocks(cols) - 1) * info_.depth, cols);
    EXPECT_GE(bytes, info_.blocks(cols) * info_.block_bytes + info_.trailer_bytes);
  }
}

TEST(Formats, AnUnknownNameListsTheKnownOnes) {
  try {
    parse_format("int9");
    FAIL() << "int9 was accepted";
  } catch (const ValueError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("'int9'"), std::string::npos) << text;
    for (int i = 0; i < kFormatCount; ++i) {
      EXPECT_NE(text.find(format_info(static_cast<Format>(i)).name), std::string::npos) << text;
    }
  }
  EXPECT_THROW(parse_format(""), ValueError);
  EXPECT_EQ(parse_format("int4_g128"), parse_format("int4"));
}

}  // namespace
}  // namespace moe
